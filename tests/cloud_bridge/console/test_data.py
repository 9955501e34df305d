"""The console over the real store: what is written there is what is shown."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cloud_bridge.config import Store as StoreSettings
from cloud_bridge.console.app import create_app
from cloud_bridge.console.settings import ConsoleSettings
from cloud_bridge.store.base import ConsoleReader, Store
from cloud_bridge.store.opening import open_store
from cloud_bridge.values import Arrival, DeadLetter, Intake, Row, StreamKey
from gateway.wire.messages import Availability, Event, Evidence, EvidenceLink, encode
from tests.cloud_bridge.console.conftest import metrics_text
from tests.simulators.bridge_data import EPOCH, NOW_NS, TINY_JPEG, a_status, an_event

LINK = EvidenceLink(evidence_id="pic-1", content_type="image/jpeg", size_bytes=len(TINY_JPEG))
PROOF = Evidence(
    evidence_id="pic-1", event_id="ev-1", pipeline="pump", content_type="image/jpeg", captured_at_ns=NOW_NS
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(StoreSettings(url=f"sqlite:///{tmp_path / 'bridge.db'}"))
    store.open()
    yield store
    store.close()


def event_row(seq: int, event: Event) -> Row:
    return Row(seq, "event", event.pipeline, NOW_NS, encode(event), index=event)


async def test_what_the_bridge_has_stored_is_shown(store: Store) -> None:
    data: ConsoleReader = store
    new, end = an_event("ev-1", evidence=LINK), an_event("ev-1", phase="end", revision=1, evidence=LINK)
    before = data.change_counter()
    store.ingest(
        Intake(
            NOW_NS,
            arrivals=(
                Arrival(StreamKey("plant-a", EPOCH, "event"), 1, (event_row(1, new), event_row(2, end))),
                Arrival(
                    StreamKey("plant-a", EPOCH, "bulk"),
                    1,
                    (Row(1, "evidence", "pump", NOW_NS, encode(PROOF), TINY_JPEG, PROOF),),
                ),
            ),
            availability=(("plant-a", Availability(state="online", at="2026-02-02T02:40:00.000Z", version="0.1.0")),),
            statuses=(("plant-a", a_status()),),
            dead_letters=(DeadLetter("malformed", "sluice/v1/plant-a/event/x", "not JSON", b"{", 1),),
        )
    )
    assert data.change_counter() > before
    app = create_app(data, ConsoleSettings(), metrics_text)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        for path in ("/", "/events", "/events/ev-1", "/gateways/plant-a", "/delivery"):
            assert (await client.get(path)).status_code == 200, path
        page = (await client.get("/")).text
        assert "imbalance" in page
        assert "/api/v1/evidence/pic-1?gateway=plant-a" in page
        assert (await client.get("/api/v1/evidence/pic-1?gateway=plant-a")).content == TINY_JPEG
        (row,) = (await client.get("/api/v1/events?label=imbalance&since=2026-02-02T00:00Z")).json()["events"]
        assert row["event"]["type"] == "end"
        assert len((await client.get("/api/v1/records?class=event")).json()["records"]) == 2
        assert (await client.get("/api/v1/counts")).json()["dead_letters"] == {"malformed": 1}
        streams = (await client.get("/api/v1/streams")).json()["streams"]
        assert {(row["class"], row["mark"]) for row in streams} == {("event", 2), ("bulk", 1)}


async def test_paging_and_odd_keys_work_on_the_real_store(store: Store) -> None:
    events = [an_event(f"ev-{number}") for number in range(1, 8)]
    rows = tuple(event_row(seq, event) for seq, event in enumerate(events, 1))
    store.ingest(Intake(NOW_NS, arrivals=(Arrival(StreamKey("plant-a", EPOCH, "event"), 1, rows),)))
    app = create_app(store, ConsoleSettings(), metrics_text)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        seen, path = list[str](), "/api/v1/events?limit=3"
        for _ in range(3):
            page = (await client.get(path)).json()
            seen += [row["event"]["event_id"] for row in page["events"]]
            path = f"/api/v1/events?limit=3&before={page['next_before']}"
        assert seen == [f"ev-{number}" for number in range(7, 0, -1)]
        for key in ("%00", "%ff", "%ED%A0%80", "..", "'; DROP TABLE events; --"):
            assert (await client.get(f"/api/v1/events/{key}")).status_code in (400, 404)
        assert (await client.get("/api/v1/events?before=9223372036854775807")).status_code == 200
