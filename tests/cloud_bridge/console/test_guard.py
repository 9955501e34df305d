from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from cloud_bridge.console.app import create_app
from cloud_bridge.console.guard import HostCheck, TokenCheck, host_name
from cloud_bridge.console.settings import ConsoleSettings
from tests.cloud_bridge.console.conftest import metrics_text
from tests.simulators.bridge_data import BridgeData

TOKEN = "0123456789abcdef0123456789abcdef"
PAGES = ["/", "/events", "/events/ev-1", "/gateways/plant-a", "/delivery"]
PROGRAM_PATHS = ["/api/v1/gateways", "/api/v1/evidence/pic-1", "/api/v1/openapi.json", "/metrics", "/live/overview"]


@pytest.fixture
def settings(tmp_path: Path) -> ConsoleSettings:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    return ConsoleSettings("0.0.0.0", file, ("bridge.example",))


@pytest.fixture
async def guarded(data: BridgeData, settings: ConsoleSettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(data, settings, metrics_text)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bridge.example") as client:
        yield client


# who is asked for


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8470", "127.0.0.1", "127.0.0.1:8470", "[::1]:8470", "localhost."]
)
async def test_loopback_names_are_answered(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.168.1.5",  # the console listens on loopback only
        "",
        "localhost@evil.example",
        "evil.example/localhost",
        "[::1",
        "localhost:x",
        "2130706433",
    ],
)
@pytest.mark.parametrize("path", ["/", "/healthz", "/api/v1/events", "/static/console.js"])
async def test_any_other_name_is_refused_against_rebinding(client: httpx.AsyncClient, host: str, path: str) -> None:
    response = await client.get(path, headers={"host": host})
    assert response.status_code == 421
    assert "plant-a" not in response.text


async def test_two_host_headers_are_refused(client: httpx.AsyncClient) -> None:
    request = client.build_request("GET", "/")
    request.headers = httpx.Headers([("host", "localhost"), ("host", "evil.example")])
    assert (await client.send(request)).status_code == 421


@pytest.mark.parametrize("host", ["bridge.example", "BRIDGE.EXAMPLE:443", "192.168.1.5:8470", "localhost"])
async def test_configured_names_and_addresses_are_answered(guarded: httpx.AsyncClient, host: str) -> None:
    assert (await guarded.get("/healthz", headers={"host": host})).status_code == 200


async def test_a_name_that_is_not_configured_is_refused(guarded: httpx.AsyncClient) -> None:
    headers = {"host": "evil.example", "authorization": f"Bearer {TOKEN}"}
    assert (await guarded.get("/api/v1/events", headers=headers)).status_code == 421


def test_a_host_header_is_read_strictly() -> None:
    assert host_name("Bridge.Example:80") == "bridge.example"
    assert host_name("[::1]:80") == "::1"
    assert host_name("a b") is host_name("a#b") is host_name("") is host_name(":80") is None


# who asks


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_without_a_session_leads_to_the_login(guarded: httpx.AsyncClient, path: str) -> None:
    response = await guarded.get(path, params={"limit": "3"})
    assert response.status_code == 303
    assert response.headers["location"] == f"/login?next={path}%3Flimit%3D3"
    assert "imbalance" not in response.text


@pytest.mark.parametrize("path", PROGRAM_PATHS)
async def test_a_program_without_the_token_is_told_so(guarded: httpx.AsyncClient, path: str) -> None:
    response = await guarded.get(path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}0",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer \xff\xfe",
    ],
)
async def test_a_wrong_token_opens_nothing(guarded: httpx.AsyncClient, header: str) -> None:
    headers = [(b"authorization", header.encode("latin-1"))]
    assert (await guarded.get("/api/v1/gateways", headers=headers)).status_code == 401


@pytest.mark.parametrize("path", [*PAGES, "/api/v1/gateways", "/api/v1/evidence/pic-1", "/metrics"])
async def test_the_token_opens_everything(guarded: httpx.AsyncClient, path: str) -> None:
    assert (await guarded.get(path, headers={"authorization": f"bearer {TOKEN}"})).status_code == 200


async def test_health_and_the_login_need_no_token(guarded: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/login", "/static/console.css"):
        assert (await guarded.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/healthz/", "//healthz", "/static", "/static/../api/v1/gateways", "/login/x"])
async def test_a_path_that_only_looks_open_shows_nothing(guarded: httpx.AsyncClient, path: str) -> None:
    request = guarded.build_request("GET", "http://bridge.example/")
    request.url = request.url.copy_with(raw_path=path.encode())
    response = await guarded.send(request)
    assert response.status_code in (303, 307, 401, 404)
    assert "plant-a" not in response.text


# what a browser is told


@pytest.mark.parametrize(
    "path", [*PAGES, "/nowhere", "/api/v1/gateways", "/healthz", "/static/console.js", "/api/v1/x"]
)
async def test_every_response_tells_the_browser_to_be_careful(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers


async def test_a_refusal_for_the_host_is_careful_as_well(client: httpx.AsyncClient) -> None:
    response = await client.get("/", headers={"host": "evil.example"})
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]


# what a request may be


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "NONSENSE"])
@pytest.mark.parametrize("path", ["/", "/events", "/api/v1/events", "/api/v1/evidence/pic-1", "/metrics", "/healthz"])
async def test_only_get_is_answered(client: httpx.AsyncClient, method: str, path: str) -> None:
    response = await client.request(method, path)
    assert response.status_code == 405
    assert "GET" in response.headers["allow"]


async def test_head_is_answered_as_get(client: httpx.AsyncClient) -> None:
    response = await client.head("/api/v1/counts")
    assert response.status_code == 200


async def test_a_large_body_is_refused(guarded: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    assert (await guarded.post("/login", content=b"x" * 9000)).status_code == 413
    assert (await guarded.post("/login", content=endless())).status_code == 413


# without a protection, the same request gets through: the tests above see the protection, not something else


@pytest.mark.parametrize("guard", [HostCheck, TokenCheck])
async def test_each_guard_is_what_refuses(data: BridgeData, settings: ConsoleSettings, guard: type) -> None:
    app = create_app(data, settings, metrics_text)
    app.user_middleware = [entry for entry in app.user_middleware if entry.cls is not guard]
    headers = {"host": "evil.example", "authorization": f"Bearer {TOKEN}"} if guard is HostCheck else {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bridge.example") as client:
        assert "plant-a" in (await client.get("/api/v1/gateways", headers=headers)).text
