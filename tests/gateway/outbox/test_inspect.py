"""Looking into a store from outside."""

from pathlib import Path

import pytest

from gateway.errors import OutboxError
from gateway.outbox.inspect import status
from gateway.outbox.store import Outbox
from tests.gateway.outbox.outbox_kit import event, settings
from tests.simulators.settable_clocks import SettableClocks


def test_a_running_store_can_be_looked_at(outbox: Outbox, file: Path) -> None:
    outbox.put([event(n) for n in range(5)])
    found = status(file)
    assert (found.epoch, found.classes["event"].rows, found.classes["event"].highest) == (outbox.epoch, 5, 5)
    assert found.classes["event"].disk_bytes == outbox.stats().classes["event"].disk_bytes
    outbox.put([event(6)])
    assert status(file).classes["event"].rows == 6


def test_a_closed_store_tells_the_age_of_its_rows(file: Path) -> None:
    machine = SettableClocks()
    outbox = Outbox.open(file, settings(), clocks=machine.clocks())
    outbox.put([event(1)])
    machine.pass_seconds(100)
    outbox.close()
    machine.pass_seconds(20)
    assert status(file, clocks=machine.clocks()).classes["event"].oldest_age_seconds == 120
    assert status(file).classes["bulk"].oldest_age_seconds is None


def test_what_is_no_store_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match="no such file"):
        status(tmp_path / "absent.db")
    (tmp_path / "text.db").write_text("hello " * 100)
    with pytest.raises(OutboxError, match="not a SQLite database"):
        status(tmp_path / "text.db")
