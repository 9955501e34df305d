"""What a broker still says for a store that is gone is taken back; what is true stays as it is."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import paho.mqtt.subscribe
import pytest
from structlog.testing import capture_logs

from cloud_bridge.errors import StoreError
from cloud_bridge.ingest.marks import PublishedMarks
from cloud_bridge.ingest.retained import RetainedMarks
from cloud_bridge.values import Stream, StreamKey
from gateway.wire.messages import NO_EPOCH, Ack, encode
from tests.simulators.bridge_process import BridgeProcess
from tests.simulators.device import Device
from tests.simulators.mosquitto import BINARY, Mosquitto
from tests.simulators.samples import AT, EPOCH
from tests.simulators.waiting import wait_for

TOPIC = "sluice/v1/dock/ack/event"
KEY = StreamKey("dock", EPOCH, "event")


def mark(number: int, epoch: str = EPOCH) -> bytes:
    return encode(Ack(epoch=epoch, mark=number, at=AT))


class Bench:
    """A broker with retained marks, and a store. Knobs: `connected`, `away`."""

    def __init__(self, retained: dict[str, bytes], own: dict[StreamKey, int]) -> None:
        self.retained, self.own = retained, own
        self.connected, self.away = True, False
        self.told: list[tuple[str, str, int]] = []
        self.published = PublishedMarks()
        self.marks = RetainedMarks(self, self, self.published, root="sluice", wall_ns=lambda: 0)

    def retained_marks(self) -> list[tuple[str, bytes]]:
        found, self.retained = list(self.retained.items()), {}
        return found

    def publish(self, topic: str, payload: bytes, *, retain: bool = True) -> bool:
        assert retain
        ack = msgspec.json.decode(payload, type=Ack)
        if self.connected:
            self.told.append((topic, ack.epoch, ack.mark))
        return self.connected

    def streams(self) -> list[Stream]:
        if self.away:
            raise StoreError("away")
        return [Stream(key, mark, mark, mark, 0, 0) for key, mark in self.own.items()]


@pytest.mark.parametrize(
    ("payload", "own", "told"),
    [
        (mark(100), {KEY: 80}, [(TOPIC, EPOCH, 80)]),  # put back from an older copy
        (mark(100), {}, [(TOPIC, EPOCH, 0)]),  # another store
        (mark(100), {StreamKey("dock", "00000000000000bb", "event"): 200}, [(TOPIC, EPOCH, 0)]),
        (mark(100), {KEY: 100}, []),
        (mark(100), {KEY: 120}, []),
        (mark(0, NO_EPOCH), {}, []),
        (b"nonsense", {}, []),
        (b"", {}, []),
    ],
)
def test_only_a_mark_above_what_the_store_has_is_taken_back(
    payload: bytes, own: dict[StreamKey, int], told: list[tuple[str, str, int]]
) -> None:
    bench = Bench({TOPIC: payload}, own)
    with capture_logs() as logs:
        bench.marks.turn()
        bench.marks.turn()
    assert bench.told == told
    assert [one["event"] for one in logs] == (["marks_taken_back"] if told else [])


def test_what_cannot_be_compared_or_told_now_waits() -> None:
    bench = Bench({TOPIC: mark(100)}, {KEY: 80})
    bench.away = True
    bench.marks.turn()
    bench.away, bench.connected = False, False
    bench.marks.turn()
    bench.marks.turn()
    assert bench.told == []
    bench.connected = True
    bench.marks.turn()
    bench.marks.turn()
    assert bench.told == [(TOPIC, EPOCH, 80)]


def test_a_mark_that_was_told_meanwhile_is_not_taken_back() -> None:
    bench = Bench({TOPIC: mark(100)}, {KEY: 80})
    assert bench.published.admit(KEY, 90)  # committed and told after the store was read
    bench.marks.turn()
    assert bench.told == []


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


def retained_mark(broker: Mosquitto) -> int:
    found = paho.mqtt.subscribe.simple(TOPIC, port=broker.port, keepalive=10)  # type: ignore[no-untyped-call]  # paho's
    return msgspec.json.decode(found.payload, type=Ack).mark


@pytest.mark.net
@pytest.mark.skipif(BINARY is None, reason="mosquitto is not installed: apt-get install mosquitto")
@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_device_that_comes_back_keeps_what_a_restored_store_has_not(
    tmp_path: Path, broker: Mosquitto, *, is_replaced: bool
) -> None:
    """The mark before the bridge begins again is the control: a device that is told it lets go of rows for good."""
    bridge = BridgeProcess(tmp_path, broker.url)
    copy = tmp_path / "copy.db"
    try:
        bridge.start()
        with Device(broker.port) as device:
            device.put("event", 50)
            wait_for(lambda: device.waiting == 0, seconds=30)
            assert bridge.stop() == 0
            shutil.copy(bridge.database, copy)
            bridge.start()
            device.put("event", 50)
            wait_for(lambda: device.waiting == 0, seconds=30)
            assert bridge.stop() == 0
        for file in tmp_path.glob("bridge.db*"):
            file.unlink()
        if not is_replaced:
            shutil.copy(copy, bridge.database)
        assert retained_mark(broker) == 100
        bridge.start()
        wait_for(lambda: retained_mark(broker) == (0 if is_replaced else 50), seconds=30)
        with Device(broker.port) as again:  # it has everything: no mark of the second half has reached it
            again.put("event", 100)
            wait_for(lambda: again.waiting == 0, seconds=30)
        assert again.sent_rows >= (100 if is_replaced else 50)
        assert bridge.stop() == 0
        stored = bridge.keys()
        assert sorted(seq for *_, seq in stored) == list(range(1, 101))
        assert bridge.log.read_text().count("marks_taken_back") == 1
        bridge.start()  # what is true stays as it is
        with Device(broker.port, "gate") as other:
            other.put("event", 10)
            wait_for(lambda: other.waiting == 0, seconds=30)
        assert retained_mark(broker) == 100
        assert bridge.stop() == 0
        assert bridge.log.read_text().count("marks_taken_back") == 1
    finally:
        bridge.kill()
