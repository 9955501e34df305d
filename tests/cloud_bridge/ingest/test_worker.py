from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from cloud_bridge.config import Ingest
from cloud_bridge.errors import StoreError, StoreRefusedError
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.ingest.marks import PublishedMarks
from cloud_bridge.ingest.worker import Worker
from cloud_bridge.metrics import Metrics
from cloud_bridge.store.base import Store
from cloud_bridge.values import Intake, Outcome, StreamKey
from gateway.wire.batch import payload_digest
from gateway.wire.messages import Ack
from tests.simulators.careless_bridge import CarelessWorker
from tests.simulators.samples import EPOCH, batch, record
from tests.simulators.waiting import wait_for

KEY = StreamKey("dock", EPOCH, "event")
TOPIC = "sluice/v1/dock/records/event"


class Script:
    """A consumer and a store in one, so that the order of everything they are told is on one list.

    Knobs: `failures` are raised by the next calls of the store; `poison` is refused by it for ever.
    """

    def __init__(self, *messages: Incoming) -> None:
        self.waiting = [list(messages)]
        self.told: list[tuple[str, object]] = []
        self.failures: list[Exception] = []
        self.poison: bytes | None = None
        self.committed = 0
        self.asked: list[int] = []

    def check(self) -> None: ...

    def gather(self, messages: int, size_bytes: int, timeout_seconds: float) -> list[Incoming]:
        self.asked.append(messages)
        return self.waiting.pop(0) if self.waiting else []

    def acknowledge(self, messages: Sequence[Incoming]) -> int:
        self.told.append(("puback", [message.packet_id for message in messages]))
        return len(messages)

    def publish(self, topic: str, payload: bytes, *, retain: bool = True) -> bool:
        ack = msgspec.json.decode(payload, type=Ack)
        self.told.append((topic, ack.mark if retain else tuple(ack.kept)))
        return True

    def ingest(self, intake: Intake) -> Outcome:
        if self.failures:
            raise self.failures.pop(0)
        if any(row.body == self.poison for arrival in intake.arrivals for row in arrival.rows):
            raise StoreRefusedError("no")
        marks = {arrival.key: arrival.rows[-1].seq for arrival in intake.arrivals}
        self.told.append(("commit", (len(intake.arrivals), [letter.reason for letter in intake.dead_letters])))
        return Outcome(marks=marks, inserted=len(intake.arrivals))


def message(packet_id: int, payload: bytes | None = None, topic: str = TOPIC) -> Incoming:
    return Incoming(topic, batch(record(packet_id)) if payload is None else payload, packet_id, 1, 1, 0)


def worked(
    script: Script, kind: type[Worker] = Worker, until: Callable[[], bool] | None = None
) -> list[tuple[str, object]]:
    worker = kind(script, script, Ingest(), Metrics(), PublishedMarks())
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(worker.run)
        try:
            wait_for(until or (lambda: not script.waiting and any(k.startswith("sluice") for k, _ in script.told)))
        finally:
            worker.stop()
        running.result(5)
    return script.told


def test_acknowledgements_follow_the_commit_in_the_order_of_receipt() -> None:
    assert worked(Script(message(3), message(1), message(2))) == [
        ("commit", (3, [])),
        ("puback", [3, 1, 2]),
        ("sluice/v1/dock/ack/event", 2),
    ]


def test_the_control_acknowledges_before_the_commit() -> None:
    told = [kind for kind, _ in worked(Script(message(1)), CarelessWorker)]
    assert told.index("puback") < told.index("commit")


def test_nothing_is_acknowledged_while_the_store_fails_and_everything_afterwards() -> None:
    script = Script(message(1))
    script.failures = [StoreError("locked"), StoreError("full")]
    assert worked(script) == [("commit", (1, [])), ("puback", [1]), ("sluice/v1/dock/ack/event", 1)]


def test_a_stop_while_the_store_fails_acknowledges_nothing() -> None:
    script = Script(message(1))
    script.failures = [StoreError("gone")] * 1000
    assert worked(script, until=lambda: len(script.failures) < 998) == []


def test_a_failing_store_is_not_asked_in_a_hot_loop() -> None:
    script = Script(message(1))
    script.failures = [StoreError("gone")] * 1000
    worker = Worker(script, script, Ingest(), Metrics(), PublishedMarks())
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(worker.run)
        wait_for(lambda: len(script.failures) < 997)
        worker.stop()
        running.result(5)
    assert len(script.failures) > 990


def test_one_message_is_taken_alone_until_one_is_committed() -> None:
    """Else a batch that kills the bridge is the first thing that it takes when it starts again, whole."""
    script = Script(message(1))
    script.waiting = [[], [message(1)], [message(2), message(3)]]
    worked(script, until=lambda: len(script.asked) > 4)
    assert script.asked[:4] == [1, 1, 200, 200]


def test_a_batch_that_unfolds_to_more_is_committed_and_acknowledged_part_by_part() -> None:
    script = Script(*(message(at, batch(*(record(1 + at * 9000 + n) for n in range(9000)))) for at in range(4)))
    assert [entry for entry in worked(script, until=lambda: len(script.told) >= 6) if entry[0] == "puback"] == [
        ("puback", [0, 1, 2]),
        ("puback", [3]),
    ]


def test_poison_is_a_dead_letter_and_the_others_flow() -> None:
    script = Script(
        message(1), message(2, b"\xff not a batch"), message(3), message(4, topic="sluice/v1/DOCK/records/event")
    )
    assert worked(script) == [
        ("commit", (2, ["bad-payload", "bad-topic"])),
        ("puback", [1, 2, 3, 4]),
        ("sluice/v1/dock/ack/event", 3),
        ("sluice/v1/dock/ack/event", (payload_digest(b"\xff not a batch"),)),
    ]


def test_a_message_that_the_store_refuses_is_found_and_set_aside() -> None:
    script = Script(message(1), message(2, batch(record(2, b'"evil"'))), message(3))
    script.poison = b'"evil"'
    told = worked(script, until=lambda: len(script.told) >= 9)
    assert ("sluice/v1/dock/ack/event", (payload_digest(batch(record(2, b'"evil"'))),)) in told
    assert [entry for entry in told if entry[0] in ("commit", "puback")] == [
        ("commit", (1, [])),
        ("puback", [1]),
        ("commit", (0, ["refused-by-store"])),
        ("puback", [2]),
        ("commit", (1, [])),
        ("puback", [3]),
    ]


def test_a_lower_mark_of_a_slower_worker_is_not_published() -> None:
    marks = PublishedMarks()
    assert marks.admit(KEY, 10)
    assert not marks.admit(KEY, 9)
    assert marks.admit(KEY, 10), "a device that missed it is told again"
    assert marks.admit(KEY._replace(epoch="1" * 16), 1)


@pytest.mark.parametrize("payload", [b"", b"{", b"S", b"SLB1\xff\xff\xff\xff", b"\x78\x9c", b"[]", b"\x00" * 100])
def test_any_payload_ends_in_the_store(store: Store, payload: bytes) -> None:
    script = Script(message(1, payload))
    worker = Worker(script, store, Ingest(), Metrics(), PublishedMarks())
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(worker.run)
        wait_for(lambda: ("puback", [1]) in script.told)
        worker.stop()
        running.result(5)
    (letter,) = store.dead_letters()
    assert (letter.letter.reason, letter.letter.payload, letter.letter.topic) == ("bad-payload", payload, TOPIC)
