"""A small honest gateway: it keeps every row until the bridge has acknowledged it, and sends again what is not."""

import threading
import time
from types import TracebackType
from typing import Any, Self

import msgspec
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from gateway.wire.batch import pack
from gateway.wire.messages import CLASSES, Ack, Record, RecordBatch, RecordClass, encode
from gateway.wire.topics import Address, address_of, filter_for, topic_for
from tests.simulators.samples import event
from tests.simulators.waiting import wait_for


class Device:
    """Rows by class and number, in memory. `given` is the truth that tests compare the bridge with.

    Knobs: rows in a batch, batches in flight, when it sends again.
    """

    def __init__(
        self,
        port: int,
        gateway: str = "dock",
        epoch: str = "00000000000000aa",
        *,
        batch_rows: int = 50,
        window: int = 8,
        resend_seconds: float = 1.0,
    ) -> None:
        self.gateway, self.epoch = gateway, epoch
        self._port = port
        self._batch_rows, self._window, self._resend_seconds = batch_rows, window, resend_seconds
        self._lock = threading.Lock()
        self._rows: dict[RecordClass, dict[int, Record]] = {name: {} for name in CLASSES}
        self.given: dict[RecordClass, int] = dict.fromkeys(CLASSES, 0)
        self.marks: dict[RecordClass, int] = dict.fromkeys(CLASSES, 0)
        self._sent: dict[RecordClass, int] = dict.fromkeys(CLASSES, 0)
        self._moved: dict[RecordClass, float] = dict.fromkeys(CLASSES, 0.0)
        self.sent_rows = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"device-{gateway}", daemon=True)
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id=f"device-{gateway}", protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)

    def put(self, name: RecordClass = "event", count: int = 1) -> None:
        """Make rows durable, as far as a memory can."""
        with self._lock:
            for _ in range(count):
                self.given[name] += 1
                seq = self.given[name]
                body = msgspec.Raw(encode(event(f"{self.gateway}-{self.epoch[-4:]}-{name}-{seq:08}")))
                self._rows[name][seq] = Record(seq=seq, kind="event", recorded_at_ns=time.time_ns(), body=body)

    @property
    def waiting(self) -> int:
        """Rows that are not acknowledged."""
        with self._lock:
            return sum(len(rows) for rows in self._rows.values())

    def publish(self, topic: str, payload: bytes) -> None:
        """Send something else, QoS 1, and wait until the broker has it."""
        wait_for(self._client.is_connected, seconds=10, what="the device is connected")
        self._client.publish(topic, payload, qos=1).wait_for_publish(10)

    def __enter__(self) -> Self:
        self._client.connect_async("127.0.0.1", self._port, keepalive=10)
        self._client.loop_start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Client, _userdata: object, _flags: Any, reason: Any, _properties: object) -> None:
        if not reason.is_failure:
            client.subscribe(filter_for("ack", gateway=self.gateway), qos=1)

    def _on_message(self, _client: Client, _userdata: object, message: Any) -> None:
        ack = msgspec.json.decode(message.payload, type=Ack)
        name: RecordClass = address_of(message.topic).name  # type: ignore[assignment]  # one of the classes
        with self._lock:
            if ack.epoch != self.epoch or ack.mark <= self.marks[name]:
                return
            assert ack.mark <= self.given[name], "the bridge acknowledged what was never made"
            for seq in range(self.marks[name] + 1, ack.mark + 1):
                del self._rows[name][seq]
            self.marks[name] = ack.mark
            self._sent[name] = max(self._sent[name], ack.mark)
            self._moved[name] = time.monotonic()

    def _run(self) -> None:
        while not self._stopping.wait(0.005):
            if self._client.is_connected():
                for name in CLASSES:
                    self._pump(name)

    def _pump(self, name: RecordClass) -> None:
        with self._lock:
            now = time.monotonic()
            mark, rows = self.marks[name], self._rows[name]
            if self._sent[name] > mark and now - self._moved[name] > self._resend_seconds:
                self._sent[name], self._moved[name] = mark, now  # go back
            payloads = []
            while self._sent[name] < self.given[name] and self._sent[name] - mark < self._window * self._batch_rows:
                first = self._sent[name] + 1
                last = min(self._sent[name] + self._batch_rows, self.given[name])
                batch = RecordBatch(epoch=self.epoch, base=mark + 1, records=[rows[n] for n in range(first, last + 1)])
                if self._sent[name] == mark:
                    self._moved[name] = now
                self._sent[name] = last
                self.sent_rows += last - first + 1
                payloads.append(pack(batch).payload)
        for payload in payloads:
            self._client.publish(topic_for(Address(self.gateway, "records", name)), payload, qos=1)
