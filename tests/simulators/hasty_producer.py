"""The negative control: a gateway that calls a record stored when it has it in memory, and writes now and then."""

import threading
import time
from collections.abc import Sequence

from gateway.outbox.store import Outbox
from gateway.recorder import Done, Recorder
from gateway.values import Entry, Receipt
from gateway.wire.messages import RecordClass
from tests.chaos import producer

EVERY_SECONDS = 0.2


class HastyRecorder(Recorder):
    """Gathers entries, and promises them at once under the numbers they will surely get."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(outbox)
        self._numbers: dict[RecordClass, int] = {name: high for name, (_, high) in outbox.heads().items()}
        self._gathered: list[Entry] = []
        self._gathering = threading.Lock()
        threading.Thread(target=self._write_now_and_then, name="hasty", daemon=True).start()

    def submit(self, entries: Sequence[Entry], done: Done) -> None:
        receipts = []
        with self._gathering:
            for entry in entries:
                name = entry.record_class
                self._numbers[name] = self._numbers.get(name, 0) + 1
                receipts.append(Receipt(name, self.epoch, self._numbers[name]))
            self._gathered.extend(entries)
        done(receipts)

    def _write_now_and_then(self) -> None:
        while True:
            time.sleep(EVERY_SECONDS)
            with self._gathering:
                entries, self._gathered = self._gathered, []
            if entries:
                super().submit(entries, _nobody)


def _nobody(receipts: Sequence[Receipt]) -> None:
    del receipts


if __name__ == "__main__":
    producer.main(recorder=HastyRecorder)
