"""An older copy of the outbox is put back: what is recorded from then on reaches the cloud, once, without a person."""

import shutil
import signal
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from gateway.outbox.schema import TABLES
from hil.loopback.rig import Rig, eventually
from hil.loopback.tally import tally_of
from tests.e2e.conftest import Site
from tests.e2e.flow import arrives, logged, waits

LOST = 25
TRUSTING = """
from gateway.uplink.delivery import Delivery
Delivery.is_ahead = lambda *_: False
Delivery.has_met = lambda *_: True
from gateway.cli import main
main()
"""
"""The gateway that hands nothing over."""

Made = tuple[str, bytes]
"""Class and body of a record; bodies have ids and times in them."""


def in_outbox(rig: Rig) -> set[Made]:
    with closing(sqlite3.connect(f"file:{rig.outbox_file}?mode=ro", uri=True, timeout=5.0)) as db:
        return {(name, body) for name, table in TABLES.items() for (body,) in db.execute(f"SELECT body FROM {table}")}


def in_cloud(rig: Rig) -> Counter[Made]:
    with closing(sqlite3.connect(f"file:{rig.directory}/bridge/bridge.db?mode=ro", uri=True, timeout=5.0)) as db:
        return Counter((name, bytes(body)) for name, body in db.execute("SELECT class, body FROM records"))


def conflicts(rig: Rig) -> int:
    with closing(sqlite3.connect(f"file:{rig.directory}/bridge/bridge.db?mode=ro", uri=True, timeout=5.0)) as db:
        (count,) = db.execute("SELECT count(*) FROM dead_letters WHERE reason = 'conflict'").fetchone()
    return int(count)


def copy_store(rig: Rig, folder: Path) -> None:
    """Copy the store with its log, at one instant of the running gateway."""
    folder.mkdir()
    rig.gateway.signal(signal.SIGSTOP)
    for end in ("", "-wal"):
        shutil.copy2(f"{rig.outbox_file}{end}", folder)
    rig.gateway.signal(signal.SIGCONT)


def restored(rig: Rig, folder: Path, more: int, *, forgets: bool = False) -> set[Made]:
    """Deliver, put back a copy from before, and let the gateway record without a network; return what it did.

    A broker that `forgets` has no retained marks afterwards.
    """
    rig.start()
    waits(rig, 20)
    copy_store(rig, folder)
    waits(rig, tally_of(rig).enqueued + LOST)
    assert rig.gateway.stop() == 0
    assert tally_of(rig).waiting == 0
    rig.broker.kill() if forgets else rig.broker.signal(signal.SIGSTOP)
    for file in rig.outbox_file.parent.glob("outbox.db*"):
        file.unlink() if file.is_file() else shutil.rmtree(file)
    for file in folder.iterdir():
        shutil.copy2(file, rig.outbox_file.parent)
    known = set(in_cloud(rig)) | in_outbox(rig)
    rig.start_gateway()
    eventually(lambda: len(in_outbox(rig) - known) >= more, f"{more} records are made", 60.0)
    made = in_outbox(rig) - known
    rig.start_broker() if forgets else rig.broker.signal(signal.SIGCONT)
    return made


@pytest.mark.parametrize("more", [4, 3 * LOST])
def test_records_made_after_an_older_copy_was_put_back_arrive_once_without_a_person(
    site: Site, tmp_path: Path, more: int
) -> None:
    rig = site()
    made = restored(rig, tmp_path / "copy", more)
    eventually(lambda: made <= set(in_cloud(rig)), "everything is committed", 60.0)
    waits(rig, tally_of(rig).enqueued + 10)
    assert rig.gateway.stop() == 0
    assert rig.last_run()["drained"]
    found = in_cloud(rig)
    assert max(found.values()) == 1
    assert conflicts(rig) == 0
    notices = [body for _, body in found if b'"store_rolled_back"' in body]
    assert notices
    assert b"an older copy of it was put back" in notices[0]
    assert logged(rig, "store_rolled_back")


def test_where_the_broker_has_forgotten_the_marks_one_record_of_a_class_finds_out(site: Site, tmp_path: Path) -> None:
    rig = site(persistence=False)
    made = restored(rig, tmp_path / "copy", 3 * LOST, forgets=True)
    eventually(lambda: made <= set(in_cloud(rig)), "everything is committed", 60.0)
    assert max(in_cloud(rig).values()) == 1
    assert conflicts(rig) <= len(TABLES)
    assert logged(rig, "store_rolled_back")


def test_without_the_handing_over_they_become_dead_letters(site: Site, tmp_path: Path) -> None:
    rig = site()
    rig.gateway.command = [sys.executable, "-c", TRUSTING, *rig.gateway.command[3:]]
    made = restored(rig, tmp_path / "copy", 3 * LOST)
    eventually(lambda: conflicts(rig) > 0, "there are dead letters", 60.0)
    arrives(rig)
    assert not made <= set(in_cloud(rig))
