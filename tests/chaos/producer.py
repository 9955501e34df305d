"""A producer process: the real outbox and the real uplink, driven hard, without pipelines in front of them.

It tells the oracle of a record only after the outbox has called it durable. Everything is asked of it through the
same control socket that a gateway has: `status`, `pause`, `resume`, `burst`. SIGTERM ends it like a gateway: it stops
producing, drains for a while, and closes the store.
"""

import argparse
import asyncio
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway import logs
from gateway.config import Broker, Cloud, Log
from gateway.config import Outbox as OutboxSettings
from gateway.control import ControlServer
from gateway.errors import OutboxError
from gateway.outbox.store import Outbox
from gateway.recorder import Recorder
from gateway.uplink.uplink import Uplink
from gateway.values import Entry, Receipt
from gateway.wire.messages import Event, Evidence, ModelRef, RecordClass, encode
from tests.chaos.footprint import POOL_THREADS
from tests.chaos.oracle import COUNTED
from tests.chaos.oracle_process import digest_of

TICK_SECONDS: Final = 0.01
SOCKET_NAME: Final = "producer.sock"
_INCARNATION: Final = 1 << 32
"""Numbers of a process; the next one begins above them, so that they rise in the order of production."""

_TEMPLATE: Final = Event(
    phase="new",
    event_id="",
    gateway="producer",
    pipeline="vibration",
    source="motor",
    rule="anomaly",
    label="anomaly",
    score=0.75,
    peak_score=0.75,
    model=ModelRef(name="vibration-anomaly", version="1.0.0", digest="0" * 64),
    at="2026-01-01T00:00:00.000Z",
    started_at="2026-01-01T00:00:00.000Z",
    captured_at_ns=0,
)

_MIX: Final[tuple[RecordClass, ...]] = ("critical", *("event",) * 7, "measure", "bulk")
"""Classes in turn: most records are events, and each class has some."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What the command line says."""

    directory: Path
    broker: Broker
    gateway: str
    oracle: Path
    incarnation: int
    rate: float
    burst: int
    drain_seconds: float
    ack_timeout_seconds: float
    outbox: OutboxSettings


class Witness:
    """Tells the oracle what became durable, in a thread of its own, so that the store never waits for it."""

    def __init__(self, oracle: Path, gateway: str) -> None:
        self._lines: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(oracle))
        self._sock.sendall(f"{gateway}\n".encode())
        self.told = 0
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)
        self._thread.start()

    def durable(self, entries: Sequence[Entry], receipts: Sequence[Receipt]) -> None:
        """Take note of entries and the proof that they are stored."""
        lines = []
        for entry, receipt in zip(entries, receipts, strict=True):
            digest = digest_of(encode(entry.body), entry.blob)
            lines.append(f"{receipt.record_class} {receipt.epoch} {receipt.seq} {digest}\n")
        self._lines.put(lines)

    def close(self) -> None:
        """Say what is left, and hang up."""
        self._lines.put(None)
        self._thread.join()
        self._sock.close()

    def _run(self) -> None:
        while (lines := self._lines.get()) is not None:
            self._sock.sendall("".join(lines).encode())
            self.told += len(lines)


class Source:
    """Makes entries at a rate, in a thread; a slow store makes it wait, as it does a pipeline."""

    def __init__(self, orders: Orders, recorder: Recorder, witness: Witness) -> None:
        self._orders = orders
        self._recorder = recorder
        self._witness = witness
        self._count = orders.incarnation * _INCARNATION
        self._extra: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._paused = threading.Event()
        self._stopping = threading.Event()
        self.made = 0
        self._thread = threading.Thread(target=self._run, name="source", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def pause(self) -> dict[str, Any]:
        """Make nothing until `resume`, bursts excepted."""
        self._paused.set()
        return {}

    def resume(self) -> dict[str, Any]:
        """Go on at the rate."""
        self._paused.clear()
        return {}

    def burst(self) -> dict[str, Any]:
        """Make as many at once as the orders say."""
        self._extra.put(self._orders.burst)
        return {}

    def stop(self) -> None:
        """Make no more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        due = 0.0
        before = time.monotonic()
        while not self._stopping.wait(TICK_SECONDS):
            now = time.monotonic()
            # What a stopped process did not make is not made up for.
            due = 0.0 if self._paused.is_set() else due + min(now - before, 1.0) * self._orders.rate
            before = now
            while not self._extra.empty():
                due += self._extra.get()
            while due >= 1.0 and not self._stopping.is_set():
                size = int(min(due, 200.0))
                due -= size
                if not self._hand_over([self._entry() for _ in range(size)]):
                    return

    def _hand_over(self, entries: list[Entry]) -> bool:
        try:
            self._recorder.submit(entries, lambda receipts: self._witness.durable(entries, receipts))
        except OutboxError:
            return False  # closed: the process is ending
        self.made += len(entries)
        return True

    def _entry(self) -> Entry:
        self._count += 1
        number, name = self._count, _MIX[self._count % len(_MIX)]
        if name == "bulk":
            body = Evidence(
                evidence_id=f"e{number:022d}",
                event_id=f"{COUNTED}{number:022d}",
                pipeline="vibration",
                content_type="application/octet-stream",
                captured_at_ns=number,
            )
            return Entry("bulk", "evidence", body, number, number.to_bytes(8, "big") * 64)
        event = msgspec.structs.replace(
            _TEMPLATE, gateway=self._orders.gateway, event_id=f"{COUNTED}{number:022d}", captured_at_ns=number
        )
        return Entry(name, "event", event, number)


class Process:
    """The composition."""

    def __init__(self, orders: Orders, uplink: type[Uplink], recorder: type[Recorder]) -> None:
        self._orders = orders
        self._uplink: Uplink | None = None
        outbox = Outbox.open(orders.directory / "outbox.db", orders.outbox, on_commit=self._committed)
        self._recorder = recorder(outbox)
        cloud = Cloud(brokers=[orders.broker], ack_timeout_seconds=orders.ack_timeout_seconds)
        self._uplink = uplink(cloud, orders.gateway, "sluice", self._recorder)
        self._witness = Witness(orders.oracle, orders.gateway)
        self._source = Source(orders, self._recorder, self._witness)
        self._stop = asyncio.Event()

    def _committed(self, classes: Any) -> None:
        if self._uplink is not None:
            self._uplink.notify(classes)

    async def run(self) -> None:
        """Produce until told to stop, then drain."""
        assert self._uplink is not None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        handlers = {
            "status": self.status,
            "pause": self._source.pause,
            "resume": self._source.resume,
            "burst": self._source.burst,
        }
        control = ControlServer(self._orders.directory / SOCKET_NAME, handlers)
        # All the threads that asyncio's pool will ever have, so that one too many later is a leak.
        await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.01) for _ in range(2 * POOL_THREADS)))
        async with asyncio.TaskGroup() as group:
            services = [group.create_task(each) for each in (control.run(), self._uplink.run(), self._keep())]
            self._source.start()
            await self._stop.wait()
            await asyncio.to_thread(self._source.stop)
            deadline = time.monotonic() + self._orders.drain_seconds
            while not self._recorder.empty and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            for task in services:
                task.cancel()
        await asyncio.to_thread(self._recorder.close)
        self._witness.close()

    async def _keep(self) -> None:
        """Open a failed store again, as the gateway does."""
        while True:
            if self._recorder.failed:
                try:
                    await asyncio.to_thread(self._recorder.reopen)
                except OutboxError:
                    await asyncio.sleep(1.0)
            await asyncio.sleep(0.2)

    def status(self) -> dict[str, Any]:
        """Tell how it is."""
        assert self._uplink is not None
        stats, status = self._recorder.stats(), self._uplink.status()
        classes = status.classes.values()
        return {
            "made": self._source.made,
            "promised": self._witness.told,
            "empty": self._recorder.empty,
            "waiting": sum(each.rows for each in stats.classes.values()),
            "queued": stats.queued_entries,
            "wal_bytes": stats.wal_bytes,
            "file_bytes": stats.file_bytes,
            "evicted": sum(each.evicted for each in stats.classes.values()),
            "partition": str(status.partition),
            "link": status.link.state,
            "reason": status.link.reason,
            "connects": status.connects,
            "sent_records": sum(each.sent_records for each in classes),
            "resent_batches": sum(each.resent_batches for each in classes),
            "highest": sum(each.highest for each in stats.classes.values()),
        }


def orders_of(arguments: Sequence[str] | None = None) -> Orders:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--broker", required=True, help="a broker of the configuration, as JSON")
    parser.add_argument("--gateway", default="producer")
    parser.add_argument("--oracle", type=Path, required=True)
    parser.add_argument("--incarnation", type=int, default=0)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--burst", type=int, default=1000)
    parser.add_argument("--drain-seconds", type=float, default=20.0)
    parser.add_argument("--ack-timeout-seconds", type=float, default=5.0)
    parser.add_argument("--outbox", default="{}", help="settings of the outbox, as JSON")
    options = parser.parse_args(arguments)
    options.directory.mkdir(parents=True, exist_ok=True)
    return Orders(
        directory=options.directory,
        broker=msgspec.json.decode(options.broker, type=Broker, dec_hook=_path),
        gateway=options.gateway,
        oracle=options.oracle,
        incarnation=options.incarnation,
        rate=options.rate,
        burst=options.burst,
        drain_seconds=options.drain_seconds,
        ack_timeout_seconds=options.ack_timeout_seconds,
        outbox=msgspec.json.decode(options.outbox, type=OutboxSettings, dec_hook=_path),
    )


def _path(kind: type, value: object) -> object:
    """JSON has no paths."""
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind} is not expected here")


async def _run(orders: Orders, uplink: type[Uplink], recorder: type[Recorder]) -> None:
    await Process(orders, uplink, recorder).run()


def main(uplink: type[Uplink] = Uplink, recorder: type[Recorder] = Recorder) -> None:
    """Run a producer; other parts may take the place of the real ones, as negative controls."""
    orders = orders_of()
    logs.configure(Log(format="json"))
    sys.setswitchinterval(0.0005)  # as the gateway does
    asyncio.run(_run(orders, uplink, recorder))


if __name__ == "__main__":
    main()
