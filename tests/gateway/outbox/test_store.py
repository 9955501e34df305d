"""The outbox as its users see it."""

import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from gateway.config import ClassQuota
from gateway.errors import OutboxError, OutboxFullError
from gateway.outbox.store import Outbox
from gateway.values import Receipt
from gateway.wire.messages import Event, RecordClass, decode, encode
from tests.gateway.outbox.outbox_kit import MIB, event, numbers, opened, picture, rows, settings, until


def test_a_receipt_names_the_key_of_each_entry_in_order(outbox: Outbox) -> None:
    receipts = outbox.put([event(1), event(2, "critical"), event(3), picture(4, 10)])
    assert receipts == [
        Receipt("event", outbox.epoch, 1),
        Receipt("critical", outbox.epoch, 1),
        Receipt("event", outbox.epoch, 2),
        Receipt("bulk", outbox.epoch, 1),
    ]


def test_a_row_holds_what_was_put(outbox: Outbox) -> None:
    entry = picture(7, 30_000)
    outbox.put([entry])
    run = outbox.read("bulk", 0, 10, MIB)
    assert run is not None
    assert (run.record_class, run.epoch, run.base) == ("bulk", outbox.epoch, 1)
    (row,) = run.rows
    assert (row.kind, row.recorded_at_ns, row.body, row.blob) == (
        "evidence",
        entry.recorded_at_ns,
        encode(entry.body),
        entry.blob,
    )


def test_done_is_called_on_the_writer_thread_after_the_commit(outbox: Outbox, file: Path) -> None:
    seen: list[tuple[str, int, list[int]]] = []

    def done(receipts: Sequence[Receipt]) -> None:
        with sqlite3.connect(file) as other:
            (count,) = other.execute("SELECT count(*) FROM records_event").fetchone()
        seen.append((threading.current_thread().name, count, [receipt.seq for receipt in receipts]))

    outbox.submit([event(1), event(2)], done)
    until(lambda: seen)
    assert seen == [("outbox-writer", 2, [1, 2])]


def test_entries_of_many_threads_get_every_number_once(outbox: Outbox) -> None:
    receipts: list[Receipt] = []

    def produce(start: int) -> None:
        for at in range(50):
            outbox.submit([event(start + at), event(start + at)], receipts.extend)

    threads = [threading.Thread(target=produce, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: len(receipts) == 400)
    assert [receipt.seq for receipt in receipts] == list(range(1, 401))
    assert numbers(outbox, "event") == list(range(1, 401))


def test_what_waits_during_a_commit_is_committed_together(outbox: Outbox) -> None:
    gate = threading.Event()

    def hold(_: Sequence[Receipt]) -> None:
        gate.wait(20)

    outbox.submit([event(0)], hold)
    done: list[int] = []
    for number in range(300):
        outbox.submit([event(number)], lambda receipts: done.append(receipts[0].seq))
    gate.set()
    until(lambda: len(done) == 300)
    assert outbox.stats().commits <= 5


def test_entries_of_one_call_are_in_one_transaction(outbox: Outbox, file: Path) -> None:
    with sqlite3.connect(file, isolation_level=None) as other:
        outbox.put([event(0)])
        counts = set()
        running = threading.Event()
        running.set()

        def watch() -> None:
            with sqlite3.connect(file) as watcher:
                while running.is_set():
                    counts.add(watcher.execute("SELECT count(*) FROM records_event").fetchone()[0])

        thread = threading.Thread(target=watch)
        thread.start()
        for at in range(20):
            outbox.put([event(at * 100 + n) for n in range(100)])
        running.clear()
        thread.join()
        assert other.execute("SELECT count(*) FROM records_event").fetchone() == (2001,)
    assert {count % 100 for count in counts} <= {1}


def test_an_empty_call_is_answered_at_once(outbox: Outbox) -> None:
    answers: list[Sequence[Receipt]] = []
    outbox.submit([], answers.append)
    assert (answers, outbox.put([])) == ([[]], [])


# ---- reading -------------------------------------------------------------------------------------


def test_rows_are_read_in_order_up_to_the_limits(outbox: Outbox) -> None:
    outbox.put([picture(n, 1000) for n in range(1, 11)])
    run = outbox.read("bulk", 0, 3, MIB)
    assert run is not None
    assert [row.seq for row in run.rows] == [1, 2, 3]
    run = outbox.read("bulk", 3, 100, 4000)
    assert run is not None
    assert [row.seq for row in run.rows] == [4, 5, 6]
    assert outbox.read("bulk", 10, 100, 4000) is None
    assert outbox.read("measure", 0, 100, 4000) is None


def test_a_row_larger_than_the_limit_is_read_alone(outbox: Outbox) -> None:
    outbox.put([picture(1, 100_000), picture(2, 10)])
    run = outbox.read("bulk", 0, 10, 1024)
    assert run is not None
    assert [row.seq for row in run.rows] == [1]


def test_a_reader_in_the_middle_of_reading_does_not_hold_up_the_writer(outbox: Outbox, file: Path) -> None:
    outbox.put([event(n) for n in range(100)])
    reader = sqlite3.connect(file, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM records_event").fetchone()
    began = time.monotonic()
    for n in range(20):
        outbox.put([event(n)])
    assert time.monotonic() - began < 5
    reader.close()


def test_many_threads_read_while_rows_come_and_go(outbox: Outbox) -> None:
    wrong: list[object] = []
    running = threading.Event()
    running.set()

    def read() -> None:
        while running.is_set():
            run = outbox.read("event", 0, 50, MIB)
            if run is not None:
                found = [row.seq for row in run.rows]
                if found != list(range(found[0], found[0] + len(found))) or run.base > found[0]:
                    wrong.append((run.base, found))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for at in range(30):
        receipts = outbox.put([event(at * 20 + n) for n in range(20)])
        outbox.acknowledge("event", outbox.epoch, receipts[-1].seq - 10)
    running.clear()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- acknowledging -------------------------------------------------------------------------------


def test_acknowledged_rows_go_and_the_base_follows(outbox: Outbox) -> None:
    outbox.put([event(n) for n in range(10)])
    assert outbox.acknowledge("event", outbox.epoch, 4) == 4
    until(lambda: outbox.heads()["event"] == (5, 10))
    run = outbox.read("event", 0, 100, MIB)
    assert run is not None
    assert (run.base, [row.seq for row in run.rows]) == (5, [5, 6, 7, 8, 9, 10])
    assert outbox.stats().classes["event"].acknowledged == 4


def test_an_older_acknowledgement_changes_nothing(outbox: Outbox) -> None:
    outbox.put([event(n) for n in range(10)])
    outbox.acknowledge("event", outbox.epoch, 6)
    until(lambda: outbox.heads()["event"] == (7, 10))
    assert outbox.acknowledge("event", outbox.epoch, 2) == 6
    outbox.put([event(11)])
    assert outbox.heads()["event"] == (7, 11)


def test_an_acknowledgement_for_another_epoch_is_counted_and_ignored(outbox: Outbox) -> None:
    outbox.put([event(n) for n in range(10)])
    assert outbox.acknowledge("event", "0" * 16, 10) == 0
    outbox.put([event(11)])
    assert outbox.heads()["event"] == (1, 11)
    assert outbox.stats().ignored_acks == 1


def test_numbers_are_never_given_again_after_the_class_was_drained(file: Path) -> None:
    for expected in (1, 4, 7):
        with opened(file) as outbox:
            assert outbox.put([event(n) for n in range(3)])[0].seq == expected
            outbox.acknowledge("event", outbox.epoch, expected + 2)
            until(lambda: outbox.heads()["event"][0] > outbox.heads()["event"][1])


def test_a_big_acknowledgement_does_not_hold_up_fresh_entries(outbox: Outbox) -> None:
    for at in range(30):
        outbox.put([event(at * 1000 + n) for n in range(1000)])
    outbox.acknowledge("event", outbox.epoch, 30_000)
    waits: list[float] = []
    while outbox.heads()["event"][0] <= 30_000:
        began = time.monotonic()
        outbox.put([event(1, "critical")])
        waits.append(time.monotonic() - began)
    assert len(waits) > 3  # the deletion went in slices
    assert sorted(waits)[len(waits) // 2] < 0.1


def test_rows_the_bridge_knows_and_the_file_lost_do_not_make_new_ones_duplicates(file: Path) -> None:
    with opened(file) as outbox:
        outbox.put([event(n) for n in range(5)])
        kept = file.with_name("copy")
    kept.write_bytes(file.read_bytes())
    with opened(file) as outbox:
        outbox.put([event(100 + n) for n in range(5)])  # 6 to 10, delivered, then lost
    kept.replace(file)
    with opened(file) as outbox:
        outbox.put([event(200), event(201)])  # 6 and 7 again
        assert outbox.acknowledge("event", outbox.epoch, 10) == 10
        until(lambda: outbox.heads()["event"] == (11, 12))
        found = rows(outbox, "event")
        assert [decode(row.body, Event).event_id for row in found] == ["e200", "e201"]
        assert outbox.put([event(202)])[0].seq == 13
        assert [row.kind for row in rows(outbox, "critical")] == ["notice"]


def test_a_senseless_mark_is_ignored(outbox: Outbox) -> None:
    outbox.put([event(1)])
    outbox.acknowledge("event", outbox.epoch, 2**62)
    until(lambda: outbox.stats().ignored_acks == 1)
    assert numbers(outbox, "event") == [1]


# ---- waiting -------------------------------------------------------------------------------------


def test_a_full_queue_makes_the_producer_wait_and_drops_nothing(file: Path) -> None:
    with opened(file, settings(queue_entries=10)) as outbox:
        gate = threading.Event()
        receipts: list[Receipt] = []

        def hold(found: Sequence[Receipt]) -> None:
            receipts.extend(found)
            gate.wait(20)

        outbox.submit([event(0)], hold)
        until(lambda: outbox.stats().commits == 1)
        outbox.submit([event(n) for n in range(10)], receipts.extend)
        with pytest.raises(OutboxFullError, match="nothing was stored"):
            outbox.put([event(99)], timeout=0.05)
        thread = threading.Thread(target=outbox.submit, args=([event(11)], receipts.extend))
        thread.start()
        assert outbox.stats().queued_entries == 10
        assert thread.is_alive()
        gate.set()
        thread.join(20)
        until(lambda: len(receipts) == 12)
        assert [receipt.seq for receipt in receipts] == list(range(1, 13))


def test_a_class_that_refuses_makes_its_producers_wait_and_lets_the_others_pass(file: Path) -> None:
    full = settings(critical=ClassQuota(max_bytes=MIB, max_rows=5, on_full="refuse"))
    with opened(file, full) as outbox:
        outbox.put([event(n, "critical") for n in range(5)])
        waiting: list[Receipt] = []
        outbox.submit([event(6, "critical")], waiting.extend)
        outbox.submit([event(7, "critical")], waiting.extend)
        assert outbox.put([event(8)])[0].seq == 1
        with pytest.raises(OutboxFullError, match="taken back"):
            outbox.put([event(9, "critical")], timeout=0.05)
        assert outbox.stats().classes["critical"].refusing
        assert outbox.stats().parked_entries == 2
        assert waiting == []
        outbox.acknowledge("critical", outbox.epoch, 1)
        until(lambda: len(waiting) == 1)
        outbox.acknowledge("critical", outbox.epoch, 3)
        until(lambda: len(waiting) == 2)
        assert [receipt.seq for receipt in waiting] == [6, 7]
        assert not outbox.stats().classes["critical"].refusing
        assert outbox.stats().classes["critical"].evicted == 0


def test_parked_entries_leave_half_of_the_queue_to_others(file: Path) -> None:
    full = settings(queue_entries=20, critical=ClassQuota(max_bytes=MIB, max_rows=1, on_full="refuse"))
    with opened(file, full) as outbox:
        outbox.put([event(0, "critical")])
        for n in range(10):
            outbox.submit([event(n, "critical")])
        until(lambda: outbox.stats().parked_entries == 10)
        with pytest.raises(OutboxFullError):
            outbox.put([event(11, "critical")], timeout=0.05)
        assert len(outbox.put([event(n) for n in range(10)], timeout=20)) == 10


def test_more_than_a_class_may_ever_hold_is_an_error_that_says_what_to_raise(file: Path) -> None:
    small = settings(bulk=ClassQuota(max_bytes=16384))
    with opened(file, small) as outbox, pytest.raises(OutboxError, match=r"outbox\.classes\.bulk\.max_bytes"):
        outbox.put([picture(1, 20_000)])


# ---- life ----------------------------------------------------------------------------------------


def test_rows_survive_a_clean_restart_in_the_same_epoch(file: Path) -> None:
    with opened(file) as outbox:
        outbox.put([event(n) for n in range(3)])
        epoch = outbox.epoch
    assert [name.name for name in sorted(file.parent.iterdir())] == ["outbox.db", "outbox.db.lock"]
    with opened(file) as outbox:
        assert (outbox.epoch, numbers(outbox, "event")) == (epoch, [1, 2, 3])
        assert outbox.put([event(4)])[0].seq == 4


def test_closing_stores_what_is_waiting(file: Path) -> None:
    receipts: list[Receipt] = []
    outbox = Outbox.open(file, settings())
    for n in range(500):
        outbox.submit([event(n)], receipts.extend)
    outbox.close()
    outbox.close()
    assert len(receipts) == 500
    with pytest.raises(OutboxError, match="closed"):
        outbox.put([event(1)])
    with pytest.raises(OutboxError, match="closed"):
        outbox.submit([event(1)])
    with pytest.raises(OutboxError, match="closed"):
        outbox.read("event", 0, 1, 1)


def test_what_a_refusing_class_cannot_take_is_given_back_at_close(file: Path) -> None:
    outbox = Outbox.open(file, settings(critical=ClassQuota(max_bytes=MIB, max_rows=1, on_full="refuse")))
    outbox.put([event(0, "critical")])
    told: list[OutboxError] = []
    outbox.submit([event(1, "critical")], abandoned=told.append)
    errors: list[BaseException] = []

    def put() -> None:
        try:
            outbox.put([event(2, "critical")])
        except OutboxError as error:
            errors.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    until(lambda: outbox.stats().parked_entries == 2)
    outbox.close()
    thread.join(20)
    assert len(told) == len(errors) == 1


def test_files_are_for_their_owner_alone(file: Path) -> None:
    with opened(file, settings(ballast_bytes=4096)) as outbox:
        outbox.put([event(1)])
        until(lambda: outbox.stats().ballast)
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert {stat.S_IMODE(name.stat().st_mode) for name in file.parent.iterdir()} == {0o600}


def test_a_second_outbox_on_the_same_file_is_refused(outbox: Outbox, file: Path) -> None:
    with pytest.raises(OutboxError, match="in use by another gateway"):
        Outbox.open(file, settings())


def test_a_place_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with pytest.raises(OutboxError, match=r"set outbox\.file or gateway\.state_directory"):
        Outbox.open(tmp_path / "plain" / "outbox.db", settings())
    with pytest.raises(OutboxError, match="not writable"):
        Outbox.open(Path("/sys/kernel/outbox.db"), settings())


def test_the_writer_never_syncs_less_than_fully_nor_maps_the_file(outbox: Outbox) -> None:
    db = outbox._generation.database._db
    outbox.put([event(n) for n in range(10)])
    outbox.acknowledge("event", outbox.epoch, 5)
    until(lambda: outbox.heads()["event"][0] == 6)
    found = {
        name: db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "mmap_size", "wal_autocheckpoint", "secure_delete")
    }
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "mmap_size": 0,
        "wal_autocheckpoint": 0,
        "secure_delete": 0,
    }


def test_the_wal_stays_bounded_under_load(outbox: Outbox) -> None:
    for at in range(100):
        outbox.put([event(at * 500 + n) for n in range(500)])
        outbox.acknowledge("event", outbox.epoch, at * 500)
    assert outbox.stats().wal_bytes < 12 * MIB


def test_listeners_hear_of_each_commit_and_their_errors_stop_nothing(file: Path) -> None:
    heard: list[frozenset[RecordClass]] = []

    def listen(classes: frozenset[RecordClass]) -> None:
        heard.append(classes)
        raise RuntimeError("a listener's own mistake")

    outbox = Outbox.open(file, settings(), on_commit=listen)
    outbox.put([event(1), event(2, "critical")])
    outbox.put([picture(1, 10)])
    until(lambda: len(heard) == 2)
    outbox.close()
    assert heard == [frozenset({"event", "critical"}), frozenset({"bulk"})]


def test_an_interpreter_that_ends_without_close_does_not_hang(file: Path) -> None:
    program = """
import sys
from pathlib import Path
from gateway.outbox.store import Outbox
from tests.gateway.outbox.outbox_kit import event, settings
outbox = Outbox.open(Path(sys.argv[1]), settings())
for n in range(2000):
    outbox.submit([event(n)])
"""
    ended = subprocess.run([sys.executable, "-c", program, str(file)], cwd=Path.cwd(), timeout=30, check=False)
    assert ended.returncode == 0
    with opened(file) as outbox:
        found = numbers(outbox, "event")
        assert found == list(range(1, len(found) + 1))
        assert rows(outbox, "critical") == []  # no notice: nothing was damaged


def test_statistics_are_plain_data(outbox: Outbox) -> None:
    outbox.put([event(1)])
    shown = msgspec.json.decode(msgspec.json.encode(outbox.stats()))
    assert shown["classes"]["event"]["rows"] == 1
    assert shown["classes"]["event"]["full_in_seconds"] > 0
    assert shown["classes"]["bulk"]["full_in_seconds"] is None
    assert outbox._file.stat().st_size == shown["file_bytes"]
