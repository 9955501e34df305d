"""The negative control: a bridge that acknowledges first and commits afterwards, as many do."""

import time
from collections.abc import Sequence

from cloud_bridge import app, cli
from cloud_bridge.ingest.decoding import intake_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.ingest.worker import Worker
from cloud_bridge.values import Outcome, StreamKey


class CarelessWorker(Worker):
    """Believes that what it has received will surely be written."""

    def _process(self, messages: Sequence[Incoming]) -> bool:
        intake = intake_of(messages, root="sluice", received_at_ns=time.time_ns())
        hoped: dict[StreamKey, int] = {arrival.key: arrival.rows[-1].seq for arrival in intake.arrivals}
        self._acknowledge(messages, Outcome(marks=hoped))
        time.sleep(0.05)  # a disk that is a little slow
        self._commit(intake)
        return True


if __name__ == "__main__":
    vars(app)["Worker"] = CarelessWorker  # the part under test, replaced on purpose
    cli.main()
