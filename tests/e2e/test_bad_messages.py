"""Hostile and broken MQTT: counted, told, and everything else flows."""

import asyncio
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from gateway.wire.messages import CLASSES, Ack, encode
from gateway.wire.topics import Address, topic_for
from hil.loopback.rig import GATEWAY_ID, Rig, eventually
from hil.loopback.tally import tally_of
from tests.e2e.conftest import Site
from tests.e2e.flow import arrives, goes_on, settle, status_of, statuses, waits
from tests.e2e.releases import CALM
from tests.simulators.scripted_broker import Script, ScriptedBroker

GARBAGE: tuple[bytes, ...] = (b"", b"not JSON", b"\xff\xfe\x00", b'{"half": ', b"[" * 20_000, b"NaN", b"x" * 100_000)
TEMPERATURE = "site/temperature"


def leaf(silent_after_seconds: float = 60.0) -> dict[str, Any]:
    """Return overrides of the site: a sensor on the local broker and a pipeline for it."""
    source = {
        "type": "mqtt",
        "topic": TEMPERATURE,
        "channels": 2,
        "rate_hz": 20.0,
        "silent_after_seconds": silent_after_seconds,
    }
    return {"sources": {"leaf": source}, "pipelines": {"leaf": {"source": "leaf", "model": CALM}}}


def publish(port: int, messages: Sequence[tuple[str, bytes]]) -> None:
    """Publish on a broker as a client that has nothing to do with the gateway."""
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        for topic, payload in messages:
            client.publish(topic, payload, qos=1).wait_for_publish(5.0)
    finally:
        client.disconnect()
        client.loop_stop()


def dead_letters(rig: Rig) -> list[dict[str, Any]]:
    """Ask the bridge's command line."""
    command = [*rig.bridge.command[:3], "deadletters", "list", "--json", "--config", str(rig.bridge_file)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return [json.loads(line) for line in shown.stdout.split("\n") if line]


def test_garbage_for_the_bridge_becomes_dead_letters_and_records_flow(site: Site) -> None:
    rig = site()
    rig.start()
    waits(rig, 5)
    records = topic_for(Address(GATEWAY_ID, "records", "event"))
    publish(rig.ports.broker, [(records, payload) for payload in GARBAGE])
    arrives(rig)
    eventually(lambda: len(dead_letters(rig)) >= len(GARBAGE) - 1, "they are kept as dead letters")
    assert {letter["topic"] for letter in dead_letters(rig)} == {records}
    assert rig.bridge.running
    settle(rig)


async def test_a_topic_that_is_no_utf8_is_a_dead_letter_and_the_link_stays(site: Site) -> None:
    async with ScriptedBroker() as cloud:
        rig = site(bridge={"brokers": [{"url": cloud.url}]})
        await asyncio.to_thread(rig.start_bridge)
        await asyncio.to_thread(eventually, lambda: cloud.subscriptions != [], "the bridge subscribes")
        cloud.send(b"sluice/v1/dock-\xff\xfe/records/event", b"[]", qos=1)
        await asyncio.to_thread(eventually, lambda: len(dead_letters(rig)) == 1, "it is kept as a dead letter")
        (letter,) = dead_letters(rig)
        assert letter["reason"] == "bad-topic"
        assert "\\xff\\xfe" in letter["topic"]
        assert len(cloud.connects) == 1
        assert await asyncio.to_thread(rig.bridge.stop) == 0


def test_garbage_from_a_leaf_sensor_is_counted_and_the_good_samples_are_used(site: Site) -> None:
    rig = site(**leaf())
    rig.start()
    eventually(lambda: status_of(rig)["local"]["state"] == "connected", "the local broker is there")
    good = [(TEMPERATURE, b"[20.5, 0.4]")] * 8
    eventually(lambda: statuses(rig)["leaf"]["source_state"] in ("opening", "streaming"), "the source listens")

    def inferred() -> bool:
        publish(rig.ports.broker, [*good, *((TEMPERATURE, payload) for payload in GARBAGE)])
        return bool(statuses(rig)["leaf"]["inferences"] > 0)

    eventually(inferred, "good samples are looked at")
    status = statuses(rig)["leaf"]
    assert status["state"] == "running"
    assert status["dropped"]["not_json"] >= 4
    assert status["dropped"]["too_large"] >= 1
    assert status["last_error"] is None
    goes_on(rig, "motor")
    settle(rig)


def test_a_silent_leaf_sensor_is_lost_and_found_again(site: Site) -> None:
    rig = site(**leaf(silent_after_seconds=1.0))
    rig.start()
    eventually(lambda: statuses(rig)["leaf"]["state"] == "degraded", "the sensor is missed")
    assert f"mosquitto_sub -t '{TEMPERATURE}'" in statuses(rig)["leaf"]["last_error"]

    def inferred() -> bool:
        publish(rig.ports.broker, [(TEMPERATURE, b"[20.5, 0.4]")] * 8)
        return bool(statuses(rig)["leaf"]["inferences"] > 0)

    eventually(inferred, "it is listened to again")
    settle(rig)


async def test_bad_topics_and_false_acks_delete_nothing(site: Site) -> None:
    async with ScriptedBroker(Script(is_bridge=True, withhold_acks=True)) as cloud:
        rig = site(gateway={"cloud": {"brokers": [{"url": cloud.url}], "ack_timeout_seconds": 1.0}})
        await asyncio.to_thread(rig.start_broker)
        await asyncio.to_thread(rig.start_gateway)
        await asyncio.to_thread(waits, rig, 20)
        before = tally_of(rig)
        assert before.waiting == before.enqueued
        for name in CLASSES:
            topic = topic_for(Address(GATEWAY_ID, "ack", name))
            cloud.send(topic.encode() + b"\xff\xfe", b"topic that is no UTF-8")
            cloud.send(b"\xc3\x28/\xa0", b"", qos=1)
            for payload in GARBAGE:
                cloud.send(topic, payload)
            for epoch, mark in ((epoch_of(rig)[::-1], 10), (epoch_of(rig), 2**63 - 1), ("", 10)):
                cloud.send(topic, encode(Ack(epoch=epoch, mark=mark, at="2026-01-01T00:00:00.000Z")))
            cloud.send(topic, b'{"epoch": "%s", "mark": 1e99, "at": ""}' % epoch_of(rig).encode())
            cloud.send(topic, b'{"epoch": "%s", "mark": -5, "at": ""}' % epoch_of(rig).encode())
        await asyncio.to_thread(
            eventually, lambda: status_of(rig)["outbox"]["ignored_acks"] >= 4 * 3, "they are counted as ignored"
        )
        await asyncio.to_thread(waits, rig, before.enqueued + 20)
        after = tally_of(rig)
        assert after.waiting >= before.waiting
        assert after.waiting == after.enqueued
        # The control: a true acknowledgement does delete.
        cloud.script.withhold_acks = False
        await asyncio.to_thread(eventually, lambda: tally_of(rig).waiting < before.waiting, "rows go")
        assert await asyncio.to_thread(rig.gateway.stop) == 0
        assert rig.last_run()["drained"]
        assert len(cloud.rows) == tally_of(rig).enqueued
        assert "Traceback" not in rig.gateway.log.read_text()


def epoch_of(rig: Rig) -> str:
    """Return the epoch of the outbox."""
    return str(status_of(rig)["outbox"]["epoch"])


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_broker_that_refuses_the_login_is_told_and_not_stormed(
    site: Site, tmp_path: Path, protocol: str
) -> None:
    password = tmp_path / "password"
    password.write_text("wrong\n")
    password.chmod(0o600)
    refusal = 0x86 if protocol == "5" else 5
    async with ScriptedBroker(Script(connack=refusal, is_bridge=True)) as cloud:
        login = {"url": cloud.url, "username": "dock", "password_file": str(password), "protocol": protocol}
        rig = site(gateway={"cloud": {"brokers": [login], "drain_seconds": 1.0}})
        await asyncio.to_thread(rig.start_broker)
        await asyncio.to_thread(rig.start_gateway)
        await asyncio.to_thread(
            eventually, lambda: status_of(rig)["cloud"]["state"] == "refused", "the status says refused"
        )
        assert status_of(rig)["cloud"]["reason"]
        await asyncio.to_thread(waits, rig, 20)
        await asyncio.to_thread(goes_on, rig, "motor", 40)
        assert 1 <= len(cloud.connect_times) <= 3
        assert tally_of(rig).waiting == tally_of(rig).enqueued
        refused = [line for line in rig.gateway.log.read_text().splitlines() if "mqtt_not_connected" in line]
        assert len(refused) == 1
        assert "wrong" not in rig.gateway.log.read_text()
        cloud.script.connack = 0
        await asyncio.to_thread(
            eventually, lambda: status_of(rig)["cloud"]["state"] == "connected", "a corrected login is taken", 15.0
        )
        assert await asyncio.to_thread(rig.gateway.stop) == 0
        assert len(cloud.rows) == tally_of(rig).enqueued - tally_of(rig).waiting
