"""A notice of a store that was put aside names it, and the numbers that went with it, as far as they can be read."""

from pathlib import Path

import pytest

from gateway.outbox.remains import Remains, remains_of
from gateway.outbox.store import Outbox
from gateway.wire.messages import Notice
from tests.gateway.outbox.outbox_kit import event, opened, settings


def filled(file: Path) -> str:
    with opened(file) as outbox:
        outbox.put([event(n) for n in range(500)])
        outbox.acknowledge("event", outbox.epoch, 120)
        return outbox.epoch
    raise AssertionError


def test_what_was_not_acknowledged_is_named(tmp_path: Path) -> None:
    epoch = filled(tmp_path / "outbox.db")
    assert remains_of(tmp_path / "outbox.db") == Remains(epoch, {"event": (121, 500)})


def test_the_notice_of_a_damaged_store_carries_it(tmp_path: Path) -> None:
    file = tmp_path / "outbox.db"
    epoch = filled(file)
    content = file.read_bytes()
    file.write_bytes(content[:16] + b"\0\0" + content[18:])  # the page size: nobody can read anything
    told: list[Notice] = []
    Outbox.open(file, settings(), on_notice=told.append).close()
    assert (told[0].code, told[0].epoch) == ("store_quarantined", None)
    with opened(file) as outbox:
        new = outbox.epoch
        outbox.put([event(n) for n in range(7)])
    assert new != epoch
    size = file.stat().st_size
    with file.open("r+b") as store:
        store.truncate(size - 100)  # no whole pages any more: refused, but most of it can be read
    told.clear()
    Outbox.open(file, settings(), on_notice=told.append).close()
    assert (told[0].epoch, told[0].missing.get("event")) == (new, (1, 7))


@pytest.mark.parametrize("content", [b"", b"x" * 10_000, b"SQLite format 3\0" + b"\xff" * 9000])
def test_what_cannot_be_read_is_left_out_and_raises_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "outbox.db").write_bytes(content)
    assert remains_of(tmp_path / "outbox.db") == Remains()
    assert remains_of(tmp_path / "none.db") == Remains()
