"""What people and programs see on the local broker."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.wire.messages import Event, decode
from hil.loopback.rig import GATEWAY_ID, Rig, eventually
from tests.e2e.conftest import Site
from tests.e2e.releases import LOUD

pytestmark = pytest.mark.skipif(
    shutil.which("mosquitto_sub") is None, reason="mosquitto_sub is not installed; `make setup` installs it"
)


@contextmanager
def subscribed(rig: Rig, topic: str, file: Path) -> Iterator[Path]:
    """Have mosquitto_sub write what it sees into a file."""
    command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(rig.ports.broker), "-v", "-t", topic]
    with file.open("wb") as output, subprocess.Popen(command, stdout=output) as process:
        try:
            yield file
        finally:
            process.terminate()


def messages(file: Path) -> list[tuple[str, bytes]]:
    """Read the complete lines: topic, space, payload."""
    text = file.read_bytes()
    lines = text[: text.rfind(b"\n") + 1].splitlines()
    return [(topic.decode(), payload) for topic, _, payload in (line.partition(b" ") for line in lines)]


def test_a_subscriber_sees_each_event_as_one_readable_document(site: Site, tmp_path: Path) -> None:
    rig = site()
    rig.start_broker()
    with subscribed(rig, "sluice/v1/+/event/#", tmp_path / "events.txt") as file:
        rig.start_bridge()
        rig.start_gateway()
        eventually(lambda: len(messages(file)) >= 4, "events are published")
        rig.gateway.stop()
        eventually(lambda: any(b'"type":"end"' in payload for _, payload in messages(file)), "the event ends")
    lives: dict[str, list[Event]] = {}
    for topic, payload in messages(file):
        event = decode(payload, Event)
        assert topic == f"sluice/v1/{GATEWAY_ID}/event/{event.pipeline}"
        lives.setdefault(event.event_id, []).append(event)
    for life in lives.values():
        assert [event.revision for event in life] == list(range(len(life)))
        assert life[0].phase == "new"
        assert life[-1].phase == "end"
        assert life[0].model.name == LOUD
        assert life[0].model.digest
        assert life[0].evidence is not None
        assert all(event.evidence == life[0].evidence for event in life)


def test_home_assistant_is_told_only_when_switched_on_and_again_at_its_birth(site: Site, tmp_path: Path) -> None:
    quiet = site()
    quiet.start()
    with subscribed(quiet, "homeassistant/#", tmp_path / "quiet.txt") as file:
        eventually(lambda: (quiet.gateway_status() or {}).get("local", {}).get("state") == "connected", "it connects")
        assert messages(file) == []
    quiet.stop()

    rig = site(gateway={"local": {"home_assistant": {"enabled": True}}})
    rig.start()
    with subscribed(rig, "homeassistant/device/#", tmp_path / "discovery.txt") as file:
        eventually(lambda: len(messages(file)) == 1, "the discovery is retained")
        publish = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(rig.ports.broker)]
        subprocess.run([*publish, "-t", "homeassistant/status", "-m", "online"], check=True)
        eventually(lambda: len(messages(file)) == 2, "the discovery is published again")
    document = json.loads(messages(file)[0][1])
    assert document["device"]["name"] == GATEWAY_ID
    assert document["components"]
    rig.stop()


def test_availability_says_stopped_after_a_clean_stop_and_offline_after_a_kill(site: Site, tmp_path: Path) -> None:
    rig = site()
    rig.start()
    with subscribed(rig, "sluice/v1/+/availability/gateway", tmp_path / "availability.txt") as file:

        def last() -> str:
            return str(json.loads(messages(file)[-1][1])["state"]) if messages(file) else ""

        eventually(lambda: last() == "online", "the gateway is online")
        rig.gateway.stop()
        eventually(lambda: last() == "stopped", "the gateway says that it stopped")
        rig.start_gateway()
        eventually(lambda: last() == "online", "the gateway is online again")
        rig.gateway.kill()
        eventually(lambda: last() == "offline", "the broker tells the will")
    rig.stop()
