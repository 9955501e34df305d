"""Whatever happens in whatever order: every number is present, acknowledged, or covered by an eviction record."""

import json
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from gateway.config import ClassQuota
from gateway.errors import OutboxFullError
from gateway.outbox.evictions import Evictor
from gateway.outbox.store import Outbox
from gateway.values import Entry, Receipt
from gateway.wire.messages import CLASSES, RecordClass
from tests.gateway.outbox.outbox_kit import MIB, event, evictions, picture, rows, settings, until
from tests.simulators.settable_clocks import SettableClocks

QUOTAS = settings(
    critical=ClassQuota(max_bytes=40_000, max_rows=30, on_full="refuse"),
    event=ClassQuota(max_bytes=30_000, max_rows=40, max_age_seconds=1000),
    measure=ClassQuota(max_bytes=MIB, max_rows=7),
    bulk=ClassQuota(max_bytes=60_000, max_rows=1000),
)


class OutboxMachine(RuleBasedStateMachine):
    """An outbox with small quotas, and what is known about it from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.file = Path(self.directory.name) / "outbox.db"
        self.machine = SettableClocks()
        self.given: dict[RecordClass, int] = dict.fromkeys(CLASSES, 0)
        self.marks: dict[RecordClass, int] = dict.fromkeys(CLASSES, 0)
        self.told: set[tuple[RecordClass, int]] = set()
        self.outbox = Outbox.open(self.file, QUOTAS, clocks=self.machine.clocks())
        self.epoch = self.outbox.epoch

    @initialize()
    def begin(self) -> None:
        self.put([event(1), event(1, "critical")])

    def put(self, entries: list[Entry]) -> list[Receipt]:
        receipts = self.outbox.put(entries, timeout=0.05 if any(e.record_class == "critical" for e in entries) else 10)
        for receipt in receipts:
            assert receipt.epoch == self.epoch
            assert receipt.seq > self.given[receipt.record_class]
            self.given[receipt.record_class] = receipt.seq
        return receipts

    @rule(
        classes=st.lists(st.sampled_from(CLASSES), min_size=1, max_size=12),
        size=st.integers(min_value=0, max_value=6000),
    )
    def store(self, classes: list[RecordClass], size: int) -> None:
        entries = [picture(n, size, name) if name == "bulk" else event(n, name) for n, name in enumerate(classes)]
        if sum(name == "measure" for name in classes) > 7 or sum(name == "bulk" for name in classes) > 6:
            return
        try:
            self.put(entries)
        except OutboxFullError:
            assert "critical" in classes

    @rule(record_class=st.sampled_from(CLASSES), share=st.floats(min_value=0, max_value=1))
    def acknowledge(self, record_class: RecordClass, share: float) -> None:
        lowest, highest = self.outbox.heads()[record_class]
        self.read_evictions()  # what is acknowledged was read, as the uplink does
        mark = lowest - 1 + int((highest - lowest + 1) * share)
        self.outbox.acknowledge(record_class, self.epoch, mark)
        self.marks[record_class] = max(self.marks[record_class], mark)
        until(lambda: self.outbox.heads()[record_class][0] > mark)

    @rule()
    def acknowledge_foreign(self) -> None:
        self.outbox.acknowledge("event", "f" * 16, 10**6)

    @rule(seconds=st.integers(min_value=1, max_value=600), step=st.sampled_from([0, 0, 10**9, -(10**8)]))
    def time_passes(self, seconds: int, step: int) -> None:
        self.machine.pass_seconds(seconds)
        self.machine.step_wall(step)

    @rule(reboot=st.booleans())
    def restart(self, reboot: bool) -> None:
        self.outbox.close()
        if reboot:
            self.machine.reboot(off_seconds=30)
        self.outbox = Outbox.open(self.file, QUOTAS, clocks=self.machine.clocks())

    @rule()
    def read(self) -> None:
        self.read_evictions()

    def read_evictions(self) -> None:
        for record in evictions(self.outbox):
            covered = {(record.record_class, seq) for seq in range(record.first_seq, record.last_seq + 1)}
            assert record.count == len(covered)
            self.told |= covered

    @invariant()
    def every_number_is_accounted_for(self) -> None:
        stats = self.outbox.stats()  # one moment; rows may go by age at any time, their records come with it
        told = set(self.told)
        for record in evictions_without_claiming(self.file):
            told |= {(record[0], seq) for seq in range(record[1], record[2] + 1)}
        for record_class in CLASSES:
            figures = stats.classes[record_class]
            lowest, highest = figures.lowest, figures.highest
            assert highest >= self.given[record_class]
            for seq in range(1, lowest):
                assert seq <= self.marks[record_class] or (record_class, seq) in told, (record_class, seq)
            assert figures.rows == highest - lowest + 1
            quota = QUOTAS.classes[record_class]
            if record_class != "critical":  # eviction records always find room there
                assert figures.rows <= quota.max_rows
                assert figures.disk_bytes <= quota.max_bytes
        assert self.outbox.epoch == self.epoch

    @invariant()
    def the_books_agree_with_the_rows(self) -> None:
        figures = self.outbox.stats().classes["bulk"]  # has no age limit
        found = rows(self.outbox, "bulk")
        assert len(found) == figures.rows
        assert (figures.disk_bytes == 0) == (not found)

    def teardown(self) -> None:
        self.outbox.close()
        self.directory.cleanup()


def evictions_without_claiming(file: Path) -> list[tuple[RecordClass, int, int]]:
    """Look at the eviction records as somebody outside, so that the outbox may still merge them."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db:
        bodies = [
            json.loads(body) for (body,) in db.execute("SELECT body FROM records_critical WHERE kind = 'eviction'")
        ]
    db.close()
    return [(body["class"], body["first_seq"], body["last_seq"]) for body in bodies]


def run(examples: int, phases: tuple[Phase, ...]) -> None:
    run_state_machine_as_test(
        OutboxMachine,
        settings=hypothesis_settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            phases=phases,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_every_number_is_present_acknowledged_or_covered_by_an_eviction() -> None:
    run(30, (Phase.generate, Phase.shrink))


def test_control_an_eviction_that_is_not_written_down_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evictor, "_write", lambda *_: None)
    with pytest.raises((AssertionError, Flaky)):
        run(30, (Phase.generate,))
