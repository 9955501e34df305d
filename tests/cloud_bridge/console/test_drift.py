"""The page of drift."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from cloud_bridge.console.app import create_app
from cloud_bridge.console.settings import ConsoleSettings
from cloud_bridge.drift import book
from cloud_bridge.drift.book import Finding, FindingKey
from cloud_bridge.drift.judging import Level, Standing
from cloud_bridge.drift.schema import DRIFT
from cloud_bridge.drift.statistics import Comparison
from cloud_bridge.identity.database import SqliteDatabase
from tests.cloud_bridge.console.conftest import metrics_text
from tests.simulators.bridge_data import a_fleet

HOSTILE = "<script>alert(1)</script>"
AT_NS = 1_800_000_000 * 1_000_000_000
FOUND = Comparison(psi=0.41, ks=0.33, p_value=1e-6, outside=0.3, outside_p_value=1e-9, samples=1234, effective=500.0)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    opened = SqliteDatabase(tmp_path / "drift.db", DRIFT)
    yield opened
    opened.close()


@pytest.fixture
async def client(database: SqliteDatabase) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(a_fleet(), ConsoleSettings(), metrics_text, drift=database)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8470") as opened:
        yield opened


def finding(subject: str, level: Level, model: str = "person") -> Finding:
    key = FindingKey(model, "1.0.0", "device", subject, "score", "shape")
    return Finding(key, Standing(level, AT_NS, level, 0, 1), AT_NS, FOUND)


async def test_an_empty_book_has_a_page_too(client: httpx.AsyncClient) -> None:
    response = await client.get("/drift")
    assert response.status_code == 200
    assert "Nothing has been compared yet" in response.text
    assert 'href="/drift" aria-current="page"' in response.text


async def test_the_worst_stands_first_and_says_why_and_what_to_do(
    client: httpx.AsyncClient, database: SqliteDatabase
) -> None:
    with database.transaction() as tx:
        book.put_findings(tx, [finding("gw-a/cam", "ok"), finding("gw-b/cam", "alarm")])
        book.note(tx, finding("gw-b/cam", "alarm").key, "alarm", "score moved", AT_NS)
        book.propose(tx, "person", "1.0.0", "device gw-b/cam", AT_NS)
    text = (await client.get("/drift")).text
    assert text.index("gw-b/cam") < text.index("gw-a/cam")
    assert "PSI 0.41, KS 0.33" in text
    assert "cloud-bridge training retrain person --from 1.0.0" in text


async def test_nothing_from_a_device_becomes_markup(client: httpx.AsyncClient, database: SqliteDatabase) -> None:
    with database.transaction() as tx:
        book.put_findings(tx, [finding(HOSTILE, "alarm", HOSTILE)])
        book.note(tx, finding(HOSTILE, "alarm", HOSTILE).key, HOSTILE, HOSTILE, AT_NS)
        book.propose(tx, HOSTILE, HOSTILE, HOSTILE, AT_NS)
    text = (await client.get("/drift")).text
    assert "<script>alert" not in text
    assert "&lt;script&gt;" in text


async def test_a_bridge_that_does_not_watch_drift_has_no_such_page() -> None:
    app = create_app(a_fleet(), ConsoleSettings(), metrics_text)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8470") as client:
        assert (await client.get("/drift")).status_code == 404
        assert "/drift" not in (await client.get("/")).text
