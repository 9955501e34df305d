"""A store that was not closed is read from the disk, not from what memory believes."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from gateway.outbox.faults import StoreFaultError
from gateway.outbox.truth import forget
from tests.gateway.outbox.outbox_kit import event, numbers, opened
from tests.gateway.outbox.test_damage import closed_store, killed_store


def test_a_store_without_a_log_is_left_alone(file: Path) -> None:
    closed_store(file)
    before = file.stat()
    forget(file)
    assert file.stat() == before


def test_forgetting_changes_nothing_that_is_on_the_disk(file: Path) -> None:
    epoch = killed_store(file)
    forget(file)
    with opened(file) as outbox:
        assert (outbox.epoch, numbers(outbox, "event")) == (epoch, list(range(1, 501)))


def test_a_reader_in_another_connection_sees_everything_after_the_index_was_voided(file: Path) -> None:
    killed_store(file)
    with sqlite3.connect(file) as reader:
        assert reader.execute("SELECT count(*) FROM records_event").fetchone() == (500,)
        forget(file)
        assert reader.execute("SELECT count(*) FROM records_event").fetchone() == (500,)
    reader.close()


def test_an_error_that_somebody_else_has_caused_is_met_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_store(file)
    failures = iter([OSError(errno.EIO, "old news")])
    real = os.fsync

    def fsync(descriptor: int) -> None:
        for error in failures:
            raise error
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with opened(file) as outbox:
        assert outbox.put([event(1)])[0].seq == 501


def test_a_disk_that_goes_on_failing_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_store(file)

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreFaultError, match="check the disk"):
        forget(file)
