"""Negative controls: a gateway that believes a broker, or anyone who says to be one, or asks it without a pause.

`python -m tests.simulators.careless_gateway believes-pubacks run --config …`
"""

import ssl
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway import cli
from gateway.config import Broker
from gateway.config import Outbox as OutboxSettings
from gateway.outbox.ages import Clocks
from gateway.outbox.store import Outbox
from gateway.recorder import Done, Recorder
from gateway.uplink import endpoint, link
from gateway.uplink.backoff import Backoff, Lane
from gateway.uplink.client import Publication
from gateway.uplink.exchange import Incoming
from gateway.uplink.uplink import Uplink
from gateway.values import Entry, Receipt
from gateway.wire.messages import Ack, RecordClass, encode
from gateway.wire.topics import Address, topic_for


class BelievingUplink(Uplink):
    """Lets rows go on a broker's PUBACK, as many do."""

    def _answered(self, record_class: RecordClass, ticket: int, publication: Publication) -> None:
        delivery = self._delivery
        last = [batch.last for batch in delivery._streams[record_class].batches if batch.ticket == ticket]
        super()._answered(record_class, ticket, publication)
        if last and not publication.cancelled() and publication.exception() is None:
            ack = Ack(epoch=delivery.epoch, mark=last[0], at="")
            topic = topic_for(Address(self._gateway_id, "ack", record_class), self._root)
            self._marks.take(Incoming(topic, encode(ack), retained=False))


class WallClockOutbox(Outbox):
    """Takes the age of a row from the time of day, as many do."""

    @classmethod
    def open(cls, file: Path, settings: OutboxSettings, **others: Any) -> "Outbox":
        clocks = Clocks(uptime_ns=time.time_ns, boot_id=lambda: "one")
        return super().open(file, settings, **{**others, "clocks": clocks})


class HastyRecorder(Recorder):
    """Says that entries are durable while they are still in memory."""

    def submit(self, entries: Sequence[Entry], done: Done) -> None:
        done([])
        later = threading.Timer(3.0, super().submit, (entries, lambda _: None))
        later.daemon = True
        later.start()


class WaitingRecorder(Recorder):
    """Holds a pipeline until what it has decided is on the disk, as simple programs do."""

    def submit(self, entries: Sequence[Entry], done: Done) -> None:
        stored = threading.Event()

        def told(receipts: Sequence[Receipt]) -> None:
            done(receipts)
            stored.set()

        super().submit(entries, told)
        stored.wait(60.0)


class ImpatientBackoff(Backoff):
    """Tries again at once, whatever the broker has said."""

    def delay(self, lane: Lane, failures: int, draw: float) -> float:
        return 0.05


def unchecked(broker: Broker) -> ssl.SSLContext:
    """Make a TLS context that believes whoever answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def main() -> None:
    """Replace one part on purpose, then be the gateway."""
    match sys.argv.pop(1):
        case "believes-pubacks":
            from gateway import daemon  # noqa: PLC0415  # heavy, and only to be changed in this process

            vars(daemon)["Uplink"] = BelievingUplink
        case "asks-at-once":
            vars(link)["Backoff"] = ImpatientBackoff
        case "believes-anyone":
            vars(endpoint)["tls_context_of"] = unchecked
        case "ages-by-wall-clock":
            from gateway import daemon  # noqa: PLC0415  # as above

            vars(daemon)["Outbox"] = WallClockOutbox
        case "tells-before-the-commit":
            from gateway import daemon  # noqa: PLC0415  # as above

            vars(daemon)["Recorder"] = HastyRecorder
        case "waits-for-commits":
            from gateway import daemon  # noqa: PLC0415  # as above

            vars(daemon)["Recorder"] = WaitingRecorder
        case other:
            raise SystemExit(f"there is no carelessness called {other!r}")
    cli.main()


if __name__ == "__main__":
    main()
