"""Kills of the gateway under readings that leaf sensors publish on the site's broker: a mosquitto, real processes."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from hil.loopback.rig import Rig, eventually
from tests.bench.echo import echo_pipeline, write_echo
from tests.bench.watching import readings_after
from tests.e2e.flow import status_of
from tests.gateway.uplink.mosquitto import Mosquitto

TOPIC = "site/press/reading"
RATE = 200.0


class Leaf:
    """Publishes numbered readings with QoS 1 until it is told to stop."""

    def __init__(self, port: int, topic: str = TOPIC) -> None:
        self.offered = 0
        self._topic = topic
        self._stop = Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"leaf-{topic}", clean_session=False)
        self._client.max_inflight_messages_set(1000)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._thread = Thread(target=self._publish, daemon=True)
        self._thread.start()

    def _publish(self) -> None:
        while not self._stop.wait(1 / RATE):
            self.offered += 1
            self._client.publish(self._topic, json.dumps({"n": self.offered}), 1)

    def stop(self) -> int:
        """Stop, and wait until the broker has answered everything; returns how many there were."""
        self._stop.set()
        self._thread.join()
        info = self._client.publish("end", b"", 1)
        info.wait_for_publish(10)
        self._client.disconnect()
        self._client.loop_stop()
        return self.offered


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """The site's, with its own limits but for the queue, which a slow machine could fill."""
    broker = Mosquitto(tmp_path, "max_queued_messages 20000")
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[list[Rig]]:
    made: list[Rig] = []
    yield made
    for rig in made:
        rig.kill()
        print(rig.gateway.tail(15))


def rig_for(folder: Path, port: int, *, protocol: str = "5", local: dict[str, Any] | None = None) -> Rig:
    source = {"type": "mqtt", "topic": TOPIC, "fields": ["n"], "rate_hz": RATE, "silent_after_seconds": 600.0}
    return Rig(
        folder / "rig",
        {"press": source},
        {"press": echo_pipeline("press")},
        gateway={
            "models": {"directories": [str(write_echo(folder / "models"))]},
            "local": {"broker": {"url": f"mqtt://127.0.0.1:{port}", "protocol": protocol}, **(local or {})},
        },
    )


def arrived(rig: Rig) -> list[int]:
    """Return the readings that the bridge has committed."""
    return readings_after(rig.directory / "bridge" / "bridge.db", 0)[1]


def under_kills(rig: Rig, leaf_port: int, kills: int = 3) -> tuple[set[int], list[int]]:
    """Kill the gateway again and again while readings come; returns the readings published and those committed."""
    rig.start_broker()
    rig.start_bridge()
    rig.start_gateway()
    eventually(lambda: status_of(rig)["local"]["state"] == "connected", "the gateway listens")
    eventually(lambda: status_of(rig)["pipelines"][0]["state"] == "running", "the pipeline runs")
    leaf = Leaf(leaf_port)
    for _ in range(kills):
        at_least = leaf.offered + 150
        eventually(lambda at_least=at_least: leaf.offered >= at_least and len(arrived(rig)) > 0, "readings come")  # type: ignore[misc]
        rig.gateway.kill()
        down = leaf.offered + 100
        eventually(lambda down=down: leaf.offered >= down, "readings come while the gateway is down")  # type: ignore[misc]
        rig.start_gateway()
    eventually(lambda: status_of(rig)["local"]["state"] == "connected", "the gateway listens again")
    after = leaf.offered + 200
    eventually(lambda: leaf.offered >= after, "readings come after the last kill")
    last = leaf.stop()
    eventually(lambda: last in arrived(rig), "the last reading arrives", 60.0)
    return set(range(1, last + 1)), arrived(rig)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_kills_of_the_gateway_lose_no_reading_of_a_leaf(
    tmp_path: Path, broker: Mosquitto, rigs: list[Rig], protocol: str
) -> None:
    rigs.append(rig := rig_for(tmp_path, broker.port, protocol=protocol))
    published, committed = under_kills(rig, broker.port)
    assert published - set(committed) == set()
    assert len(committed) - len(set(committed)) < 3 * 1000, "at most what was unacknowledged comes twice"


def test_control_without_a_session_the_same_kills_lose_readings(
    tmp_path: Path, broker: Mosquitto, rigs: list[Rig]
) -> None:
    rigs.append(rig := rig_for(tmp_path, broker.port, local={"session_expiry_seconds": 0}))
    published, committed = under_kills(rig, broker.port)
    assert len(published - set(committed)) >= 200


def test_a_clean_stop_and_a_start_lose_no_reading_of_a_leaf(tmp_path: Path, broker: Mosquitto, rigs: list[Rig]) -> None:
    rigs.append(rig := rig_for(tmp_path, broker.port))
    rig.start_broker()
    rig.start_bridge()
    rig.start_gateway()
    eventually(lambda: status_of(rig)["local"]["state"] == "connected", "the gateway listens")
    leaf = Leaf(broker.port)
    eventually(lambda: len(arrived(rig)) > 50, "readings arrive")
    assert rig.gateway.stop() == 0
    down = leaf.offered + 100
    eventually(lambda: leaf.offered >= down, "readings come while the gateway is stopped")
    rig.start_gateway()
    last = leaf.stop()
    eventually(lambda: last in arrived(rig), "the last reading arrives", 60.0)
    assert set(range(1, last + 1)) - set(arrived(rig)) == set()


def test_a_leaf_whose_model_is_missing_does_not_hold_up_the_others(
    tmp_path: Path, broker: Mosquitto, rigs: list[Rig]
) -> None:
    rig = rig_for(tmp_path, broker.port)
    rigs.append(rig)
    other = {**rig.gateway_settings["sources"]["press"], "topic": "site/other"}
    rig.gateway_settings["sources"]["other"] = other
    rig.gateway_settings["pipelines"]["other"] = {**echo_pipeline("other"), "model": "not-there"}
    rig.write()
    rig.start_broker()
    rig.start_bridge()
    rig.start_gateway()
    eventually(lambda: status_of(rig)["local"]["state"] == "connected", "the gateway listens")
    paused, leaf = Leaf(broker.port, "site/other"), Leaf(broker.port)
    began = time.monotonic()
    eventually(lambda: paused.offered > 1500 and leaf.offered > 1500, "more came than may be unacknowledged")
    paused.stop()
    last = leaf.stop()
    eventually(lambda: last in arrived(rig), "the last reading of the other arrives", 30.0)
    assert set(range(1, last + 1)) - set(arrived(rig)) == set()
    assert time.monotonic() - began < 60
    assert "leaf_readings_unprotected" in rig.gateway.log.read_text()
