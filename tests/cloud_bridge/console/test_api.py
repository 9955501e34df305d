import base64

import httpx
import pytest

from cloud_bridge.errors import StoreError
from tests.simulators.bridge_data import EPOCH, NOW_NS, SECOND_NS, TINY_JPEG, BridgeData, an_event, window


async def test_gateways_are_listed_with_their_state(client: httpx.AsyncClient) -> None:
    found = (await client.get("/api/v1/gateways")).json()["gateways"]
    assert [(row["gateway"], row["state"], row["version"]) for row in found] == [
        ("plant-a", "online", "0.1.0"),
        ("yard-b", "offline", "0.0.9"),
    ]
    assert found[0]["seen_at_ns"] == NOW_NS
    assert found[0]["seen_at"] == "2026-02-02T02:40:00.000Z"


async def test_one_gateway_comes_with_its_pipelines_and_streams_only(client: httpx.AsyncClient) -> None:
    found = (await client.get("/api/v1/gateways/yard-b")).json()
    assert found["state"] == "offline"
    assert [row["status"]["pipeline"] for row in found["pipelines"]] == ["gate"]
    assert {row["gateway"] for row in found["streams"]} == {"yard-b"}


@pytest.mark.parametrize("name", ["nobody", "NO", "%00", "a%2Fb", "%ff"])
async def test_a_gateway_never_heard_of_is_not_found(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/api/v1/gateways/{name}")).status_code == 404


async def test_pipelines_are_filtered_by_gateway(client: httpx.AsyncClient) -> None:
    assert len((await client.get("/api/v1/pipelines")).json()["pipelines"]) == 2
    (row,) = (await client.get("/api/v1/pipelines?gateway=yard-b")).json()["pipelines"]
    assert row["status"]["last_error"] == "camera /dev/video0 is gone"


async def test_phases_of_an_event_are_one_event(client: httpx.AsyncClient) -> None:
    found = (await client.get("/api/v1/events?label=imbalance")).json()["events"]
    assert [(row["event"]["event_id"], row["event"]["type"]) for row in found] == [("ev-3", "new"), ("ev-1", "end")]


async def test_paging_visits_every_event_once_whatever_comes_meanwhile(
    client: httpx.AsyncClient, data: BridgeData
) -> None:
    for number in range(10, 33):
        data.put_event(an_event(f"ev-{number}"))
    seen: list[int] = []
    before: int | None = None
    for _ in range(20):
        asked = {"limit": 5} | ({} if before is None else {"before": before})
        page = (await client.get("/api/v1/events", params=asked)).json()
        seen += [row["id"] for row in page["events"]]
        data.put_event(an_event(f"late-{before}"))
        before = page["next_before"]
        if before is None:
            break
    assert seen == list(range(26, 0, -1))


async def test_the_last_page_says_so_even_when_it_is_full(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v1/events?limit=3")).json()["next_before"] is None
    assert (await client.get("/api/v1/events?limit=2")).json()["next_before"] == 2


async def test_events_are_filtered_by_everything_at_once(client: httpx.AsyncClient, data: BridgeData) -> None:
    data.now_ns = NOW_NS + 60 * SECOND_NS
    data.put_event(an_event("late", gateway="yard-b", pipeline="gate", label="person"))
    asked = {"gateway": "yard-b", "pipeline": "gate", "label": "person", "since": "2026-02-02T02:40:30Z"}
    found = (await client.get("/api/v1/events", params=asked)).json()["events"]
    assert [row["event"]["event_id"] for row in found] == ["late"]


async def test_one_event_is_found_by_its_id_and_told_apart_by_gateway(
    client: httpx.AsyncClient, data: BridgeData
) -> None:
    data.put_event(an_event("ev-1", gateway="yard-b", label="same id"))
    assert (await client.get("/api/v1/events/ev-1?gateway=yard-b")).json()["event"]["label"] == "same id"
    assert (await client.get("/api/v1/events/ev-1?gateway=plant-a")).json()["event"]["label"] == "imbalance"
    assert (await client.get("/api/v1/events/nothing")).status_code == 404


async def test_ids_with_any_characters_are_found(client: httpx.AsyncClient, data: BridgeData) -> None:
    data.put_event(an_event("a/b?c#d <e>"))
    response = await client.get("/api/v1/events/a%2Fb%3Fc%23d%20%3Ce%3E")
    assert response.json()["event"]["event_id"] == "a/b?c#d <e>"


@pytest.mark.parametrize("key", ["%00", "a%00b", "x" * 1001, "%0a", "%ff"])
@pytest.mark.parametrize("path", ["/api/v1/events/", "/api/v1/evidence/", "/events/"])
async def test_keys_that_cannot_be_are_not_found(client: httpx.AsyncClient, path: str, key: str) -> None:
    assert (await client.get(path + key)).status_code == 404


async def test_records_carry_the_body_as_it_was_sent(client: httpx.AsyncClient, data: BridgeData) -> None:
    data.put_record(
        "plant-a", "critical", "notice", b'{"code":"x","detail":"\xc3\xbc","big":123456789012345678901234567890}'
    )
    response = await client.get("/api/v1/records?class=critical&kind=notice&gateway=plant-a")
    (row,) = response.json()["records"]
    assert row["body"] == {"code": "x", "detail": "ü", "big": 123456789012345678901234567890}
    assert (row["gateway"], row["epoch"], row["class"], row["seq"]) == ("plant-a", EPOCH, "critical", 1)


@pytest.mark.parametrize("body", [b"", b"not json", b'"\xff"', b'{"a":1', b"[" * 100_000])
async def test_a_body_that_is_no_json_does_not_spoil_the_answer(
    client: httpx.AsyncClient, data: BridgeData, body: bytes
) -> None:
    data.put_record("plant-a", "critical", "notice", body)
    response = await client.get("/api/v1/records?class=critical")
    assert response.status_code == 200
    assert isinstance(response.json()["records"][0]["body"], str)


async def test_records_page_like_events(client: httpx.AsyncClient) -> None:
    first = (await client.get("/api/v1/records?limit=3")).json()
    assert [row["id"] for row in first["records"]] == [4, 3, 2]
    rest = (await client.get(f"/api/v1/records?limit=3&before={first['next_before']}")).json()
    assert ([row["id"] for row in rest["records"]], rest["next_before"]) == ([1], None)


async def test_counts_streams_gaps_and_dead_letters_are_told(client: httpx.AsyncClient) -> None:
    counts = (await client.get("/api/v1/counts")).json()
    assert counts == {
        "records": 4,
        "events": 3,
        "duplicates": 0,
        "gaps": 5,
        "dead_letters": {"malformed": 1},
        "deleted": 0,
    }
    streams = (await client.get("/api/v1/streams?gateway=plant-a")).json()["streams"]
    assert [(row["class"], row["mark"], row["last"]) for row in streams] == [("event", 3, 3)]
    (gap,) = (await client.get("/api/v1/gaps")).json()["gaps"]
    assert (gap["first"], gap["last"], gap["source"]) == (5, 9, "eviction")
    (letter,) = (await client.get("/api/v1/deadletters?reason=malformed")).json()["dead_letters"]
    assert base64.b64decode(letter["payload_start"]) == b"\x00<not json>"
    assert (await client.get("/api/v1/deadletters?reason=other")).json()["dead_letters"] == []


async def test_a_picture_is_served_as_one_and_may_be_kept(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/v1/evidence/pic-1?gateway=yard-b")
    assert (response.content, response.headers["content-type"]) == (TINY_JPEG, "image/jpeg")
    assert response.headers["content-disposition"] == "inline"
    assert "immutable" in response.headers["cache-control"]


async def test_a_window_is_served_to_be_saved(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/v1/evidence/win-1")
    assert (response.content, response.headers["content-type"]) == (window(), "application/x-npy")
    assert response.headers["content-disposition"] == 'attachment; filename="win-1.npy"'


@pytest.mark.parametrize("claimed", ["text/html", "image/svg+xml", "image/jpeg", "text/html\r\nX-Injected: 1", "ü"])
async def test_evidence_that_is_no_picture_is_never_run(
    client: httpx.AsyncClient, data: BridgeData, claimed: str
) -> None:
    data.put_evidence("plant-a", 'x"y', b"<script>alert(1)</script>", claimed)
    response = await client.get("/api/v1/evidence/x%22y")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"] == 'attachment; filename="x_y.bin"'
    assert "sandbox" in response.headers["content-security-policy"]
    assert "x-injected" not in response.headers


async def test_evidence_that_has_not_come_is_not_found(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/v1/evidence/nothing")
    assert (response.status_code, response.json()["status"]) == (404, 404)


@pytest.mark.parametrize(
    "path",
    [
        "events?limit=0",
        "events?since=x",
        "events?before=-1",
        "events?offset=5",
        "records?class=x",
        "records?kind=x",
        "records?limit=501",
        "gateways?x=1",
        "gateways/plant-a?x=1",
        "pipelines?gateway=%00",
        "streams?gateway=A",
        "gaps?limit=x",
        "deadletters?limit=1000",
        "counts?x=1",
        "evidence/pic-1?gateway=..",
        "events/ev-1?limit=1",
        "openapi.json?x=1",
    ],
)
async def test_a_bad_query_is_refused_with_what_is_allowed(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(f"/api/v1/{path}")
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert any(word in response.json()["detail"] for word in ("must", "allowed"))


async def test_an_unknown_path_is_a_problem_not_a_page(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/v1/nothing")
    assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("path", ["gateways", "gateways/plant-a", "events", "records", "counts", "evidence/pic-1"])
async def test_a_store_that_cannot_be_read_is_said_to_come_back(
    client: httpx.AsyncClient, data: BridgeData, path: str
) -> None:
    data.failing = True
    response = await client.get(f"/api/v1/{path}")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert str(StoreError("the disk does not answer")) not in response.text


async def test_rollups_are_filtered_and_paged(client: httpx.AsyncClient, data: BridgeData) -> None:
    for hour in range(4):
        data.now_ns = NOW_NS + hour * 3600 * SECOND_NS
        data.put_rollup("plant-a", "press", "imbalance", hour + 1)
    data.put_rollup("yard-b", "gate", "person", 9, grain_seconds=86400)
    seen: list[int] = []
    asked: dict[str, str | int] = {"limit": 3, "gateway": "plant-a", "label": "imbalance"}
    for _ in range(5):
        page = (await client.get("/api/v1/rollups", params=asked)).json()
        seen += [one["events"] for one in page["rollups"]]
        if page["next_cursor"] is None:
            break
        asked["cursor"] = page["next_cursor"]
    assert seen == [4, 3, 2, 1]
    (day,) = (await client.get("/api/v1/rollups?by=day")).json()["rollups"]
    assert (day["events"], day["seconds"], day["score"]["mean"]) == (9, 86400, 0.5)
    since = (await client.get("/api/v1/rollups?since=2026-02-02T04:40:00Z")).json()["rollups"]
    assert len(since) == 2


@pytest.mark.parametrize("path", ["gaps", "deadletters"])
async def test_lists_without_ids_are_paged_by_a_cursor(client: httpx.AsyncClient, data: BridgeData, path: str) -> None:
    for number in range(10, 15):
        data.now_ns += SECOND_NS
        data.put_gap("yard-b", number * 10, number * 10)
        data.put_letter("malformed", "t", bytes([number]))
    seen: list[object] = []
    asked: dict[str, str | int] = {"limit": 4}
    for _ in range(5):
        page = (await client.get(f"/api/v1/{path}", params=asked)).json()
        rows = page["gaps" if path == "gaps" else "dead_letters"]
        seen += [row["first"] if path == "gaps" else row["id"] for row in rows]
        if page["next_cursor"] is None:
            break
        asked["cursor"] = page["next_cursor"]
    assert len(seen) == len(set(seen)) == 6
    assert (await client.get(f"/api/v1/{path}?cursor=xyz")).status_code == 400
    assert len((await client.get(f"/api/v1/{path}?until=2026-02-02T02:40:03Z")).json()[next(iter(page))]) == 3


async def test_a_store_that_was_put_aside_is_among_the_gaps(client: httpx.AsyncClient, data: BridgeData) -> None:
    data.put_lost_store("yard-b", EPOCH)
    (gap,) = (await client.get("/api/v1/gaps?source=quarantine")).json()["gaps"]
    assert (gap["class"], gap["first"], gap["last"], gap["is_open"]) == ("", 1, 0, True)
