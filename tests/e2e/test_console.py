"""The console shows what the gateway did: over HTTP, from the running bridge."""

import json
import subprocess
from typing import Any

import httpx

from hil.loopback.rig import GATEWAY_ID, Rig, eventually
from hil.loopback.tally import tally_of
from tests.e2e.conftest import Site
from tests.e2e.flow import arrives, settle, waits
from tests.e2e.releases import LOUD


def got(rig: Rig, path: str) -> dict[str, Any]:
    """Return the answer of the HTTP API."""
    answer = httpx.get(f"{rig.console_url}api/v1/{path}", timeout=5.0).raise_for_status()
    content: dict[str, Any] = answer.json()
    return content


def test_the_console_shows_the_fleet_its_anomalies_and_their_evidence(site: Site) -> None:
    rig = site()
    rig.start()
    waits(rig, 10)
    arrives(rig)
    eventually(lambda: got(rig, "gateways")["gateways"] != [], "the gateway is known")
    assert [(one["gateway"], one["state"]) for one in got(rig, "gateways")["gateways"]] == [(GATEWAY_ID, "online")]
    eventually(lambda: len(got(rig, "pipelines")["pipelines"]) == 2, "its pipelines are known")

    def proven() -> list[dict[str, Any]]:
        events = [one["event"] for one in got(rig, "events?pipeline=motor")["events"]]
        return [event for event in events if event["evidence"]]

    eventually(lambda: proven() != [], "an event with evidence is there")
    event = proven()[0]
    assert event["model"]["name"] == LOUD
    assert event["score"] >= 0.5
    link = event["evidence"]
    eventually(
        lambda: httpx.get(f"{rig.console_url}api/v1/evidence/{link['evidence_id']}").status_code == 200,
        "the evidence is there",
    )
    evidence = httpx.get(f"{rig.console_url}api/v1/evidence/{link['evidence_id']}")
    assert evidence.content.startswith(b"\x93NUMPY")
    assert len(evidence.content) == link["size_bytes"]

    page = httpx.get(rig.console_url)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    for word in (GATEWAY_ID, "motor", "anomaly"):
        assert word in page.text
    assert httpx.get(f"{rig.console_url}metrics").status_code == 200
    settle(rig)


def test_requests_that_make_no_sense_are_refused_and_the_bridge_goes_on(site: Site) -> None:
    rig = site()
    rig.start()
    waits(rig, 5)
    with httpx.Client(base_url=rig.console_url, timeout=5.0) as client:
        for path, status in {
            "api/v1/events?limt=5": 400,
            "api/v1/events?limit=-1": 400,
            "api/v1/gateways/%FF%FE": 404,
            "api/v1/evidence/../../etc/passwd": 404,
            "nothing": 404,
        }.items():
            assert client.get(path).status_code == status, path
        assert client.get("", headers={"Host": "evil.example"}).status_code in (400, 403, 421)
        assert client.post("api/v1/events").status_code == 405
    arrives(rig)
    settle(rig)


def test_the_command_line_counts_what_the_page_and_the_store_count(site: Site) -> None:
    rig = site()
    rig.start()
    waits(rig, 10)
    assert rig.gateway.stop() == 0
    eventually(lambda: tally_of(rig).lost == 0, "everything arrived")
    command = [*rig.bridge.command[:3], "status", "--json", "--config", str(rig.bridge_file)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    told = json.loads(shown.stdout)
    assert told["records"] == tally_of(rig).committed == tally_of(rig).enqueued
    assert sum(stream["records"] for stream in got(rig, "streams")["streams"]) == told["records"]
    rig.stop()
