"""The application as a whole: whatever is asked, it answers, and never with an error of its own."""

import asyncio
from pathlib import Path

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloud_bridge.console.app import create_app
from cloud_bridge.console.settings import ConsoleSettings
from cloud_bridge.errors import ConfigError
from tests.cloud_bridge.console.conftest import metrics_text
from tests.simulators.bridge_data import BridgeData, a_fleet

PATHS = [
    "/",
    "/events",
    "/events/{}",
    "/gateways/{}",
    "/delivery",
    "/static/{}",
    "/api/v1/gateways/{}",
    "/api/v1/events",
    "/api/v1/events/{}",
    "/api/v1/records",
    "/api/v1/deadletters",
    "/api/v1/evidence/{}",
    "/{}",
]
NAMES = ["gateway", "pipeline", "label", "class", "kind", "since", "before", "limit", "reason", "%00", ""]
ODD = st.one_of(
    st.text(max_size=30), st.sampled_from(["-1", "0", "9" * 30, "1e9", "2026-02-30", "NaN", "%", "..", "\x00"])
)

_transport = httpx.ASGITransport(create_app(a_fleet(), ConsoleSettings(), metrics_text))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PATHS), ODD, st.lists(st.tuples(st.sampled_from(NAMES), ODD), max_size=3))
@example("/static/{}", "\x00", [])
@example("/static/{}", "x" * 5000, [])
@example("/api/v1/events", "", [("since", "2026-02-30")])
def test_no_request_makes_it_stumble(path: str, part: str, query: list[tuple[str, str]]) -> None:
    asked: list[tuple[str, str | int | float | bool | None]] = [*query]
    quoted = "".join(f"%{byte:02x}" for byte in part.encode(errors="surrogatepass"))

    async def ask() -> int:
        async with httpx.AsyncClient(transport=_transport, base_url="http://localhost") as client:
            return (await client.get(path.format(quoted), params=asked)).status_code  # raises what the console raises

    assert asyncio.run(ask()) < 500


def test_it_refuses_to_start_open_to_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token_file"):
        create_app(BridgeData(), ConsoleSettings(host="0.0.0.0"), metrics_text)
    file = tmp_path / "token"
    file.write_text("0123456789abcdef0123456789abcdef")
    create_app(BridgeData(), ConsoleSettings(host="0.0.0.0", token_file=file), metrics_text)
