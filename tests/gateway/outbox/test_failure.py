"""The disk fails while the gateway runs."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.errors import OutboxError
from gateway.outbox.database import Database
from gateway.outbox.faults import StoreFaultError
from gateway.outbox.store import Outbox
from gateway.values import Receipt
from gateway.wire.messages import Notice, RecordClass, decode
from tests.gateway.outbox.outbox_kit import event, numbers, opened, rows, settings, until


class FailingCommit:
    """Makes the next transaction with new rows fail, before or after it has reached the file."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, after_commit: bool, record_class: RecordClass = "event"
    ) -> None:
        self.armed = True
        original = Database.transaction

        @contextmanager
        def transaction(database: Database) -> Iterator[None]:
            before = database.held[record_class].highest
            with original(database):
                yield
                strikes = self.armed and database.held[record_class].highest > before
                if strikes and not after_commit:
                    self.armed = False
                    raise StoreFaultError("disk I/O error (SQLITE_IOERR_FSYNC)")
            if strikes:
                self.armed = False
                raise StoreFaultError("disk I/O error (SQLITE_IOERR_FSYNC)")

        monkeypatch.setattr(Database, "transaction", transaction)


@pytest.mark.parametrize("after_commit", [False, True])
def test_after_an_io_error_nothing_is_acknowledged_and_reopening_stores_everything_once(
    file: Path, monkeypatch: pytest.MonkeyPatch, after_commit: bool
) -> None:
    failures: list[OutboxError] = []
    receipts: list[Receipt] = []
    FailingCommit(monkeypatch, after_commit=after_commit)
    outbox = Outbox.open(file, settings(), on_failed=failures.append)
    for n in range(20):
        try:
            outbox.submit([event(n), event(n)], receipts.extend)
        except OutboxError:
            break
    until(lambda: failures)
    assert receipts == []
    assert outbox.failed
    assert outbox.stats().failed
    with pytest.raises(OutboxError, match="has failed"):
        outbox.submit([event(99)])
    with pytest.raises(OutboxError, match="has failed"):
        outbox.put([event(99)], timeout=5)
    accepted = outbox.stats().queued_entries
    outbox.reopen()
    until(lambda: len(receipts) == accepted)
    assert not outbox.failed
    assert [receipt.seq for receipt in receipts] == list(range(1, accepted + 1))
    assert numbers(outbox, "event") == list(range(1, accepted + 1))
    assert outbox.put([event(100)])[0].seq == accepted + 1
    outbox.close()


def test_a_put_that_is_waiting_when_the_disk_fails_is_stored_after_reopening(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()
    FailingCommit(monkeypatch, after_commit=False)
    outbox = Outbox.open(file, settings(), on_failed=lambda _: failed.set())
    answers: list[list[Receipt]] = []
    thread = threading.Thread(target=lambda: answers.append(outbox.put([event(1)])))
    thread.start()
    assert failed.wait(20)
    assert thread.is_alive()
    outbox.reopen()
    thread.join(20)
    assert [receipt.seq for receipt in answers[0]] == [1]
    outbox.close()


def test_closing_a_failed_outbox_tells_the_producers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[OutboxError] = []
    failed = threading.Event()
    FailingCommit(monkeypatch, after_commit=False)
    outbox = Outbox.open(file, settings(), on_failed=lambda _: failed.set())
    outbox.submit([event(1)], abandoned=told.append)
    assert failed.wait(20)
    outbox.close()
    assert len(told) == 1
    with pytest.raises(OutboxError, match="closed"):
        outbox.reopen()
    with opened(file) as again:
        assert numbers(again, "event") == []


def test_reopening_an_outbox_that_works_does_nothing(outbox: Outbox) -> None:
    outbox.put([event(1)])
    outbox.reopen()
    assert outbox.put([event(2)])[0].seq == 2


def test_a_failing_writer_gives_reads_a_clear_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox.open(file, settings())
    outbox.put([event(1)])
    failed = threading.Event()
    outbox._on_failed = lambda _: failed.set()
    FailingCommit(monkeypatch, after_commit=False)
    outbox.submit([event(2)])
    assert failed.wait(20)
    with pytest.raises(OutboxError):
        outbox.read("event", 0, 10, 1000)
    outbox.reopen()
    until(lambda: numbers(outbox, "event") == [1, 2])
    outbox.close()


LIMITED = """
import resource, sys
from pathlib import Path
from gateway.outbox.store import Outbox
from gateway.errors import OutboxError
from tests.gateway.outbox.outbox_kit import event, numbers, settings, until

outbox = Outbox.open(Path(sys.argv[1]), settings())
receipts = []
outbox.put([event(0)])
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, hard))
accepted = 0
while not outbox.failed:  # one by one the WAL grows faster than the file, and meets the limit: SQLITE_IOERR_WRITE
    outbox.submit([event(accepted)], receipts.extend)
    accepted += 1
    until(lambda: len(receipts) == accepted or outbox.failed)
stored = len(receipts)
assert stored == accepted - 1
try:
    outbox.submit([event(0)])
except OutboxError as error:
    assert "has failed" in str(error), error
else:
    raise AssertionError
outbox.reopen()
until(lambda: len(receipts) == accepted)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
assert [receipt.seq for receipt in receipts] == list(range(2, accepted + 2))
assert numbers(outbox, "event") == list(range(1, accepted + 2))
outbox.close()
print("stored", stored, "accepted", accepted)
"""

BORN_LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from gateway.outbox.store import Outbox
from tests.gateway.outbox.outbox_kit import evictions, event, numbers, settings

outbox = Outbox.open(Path(sys.argv[1]), settings())
for n in range(100):
    outbox.put([event(100 * n + k) for k in range(100)])
assert not outbox.failed
held = numbers(outbox, "event")
assert held[-1] == 10_000
gone = {seq for record in evictions(outbox) for seq in range(record.first_seq, record.last_seq + 1)}
assert gone | set(held) == set(range(1, 10_001))
outbox.close()
print("stored", len(held))
"""


@pytest.mark.parametrize("program", [LIMITED, BORN_LIMITED], ids=["set while running", "set at start"])
def test_a_limit_on_file_size_loses_nothing(file: Path, program: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", program, str(file)],
        cwd=Path(__file__).parents[3],
        timeout=100,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    assert "stored" in ended.stdout.splitlines()[-1]


def test_the_cloud_is_told_that_the_disk_had_failed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()
    FailingCommit(monkeypatch, after_commit=False)
    outbox = Outbox.open(file, settings(), on_failed=lambda _: failed.set())
    outbox.submit([event(1)])
    assert failed.wait(20)
    outbox.reopen()
    until(lambda: rows(outbox, "critical"))
    (row,) = rows(outbox, "critical")
    told = decode(row.body, Notice)
    assert (told.code, told.severity) == ("store_failed", "error")
    assert "SQLITE_IOERR_FSYNC" in told.detail
    outbox.close()
