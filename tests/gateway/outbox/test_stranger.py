"""What never was an outbox is neither moved nor written to, whatever the configuration says."""

import os
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.outbox import store
from gateway.outbox.damage import side
from gateway.outbox.quarantine import quarantined_name
from gateway.outbox.store import Outbox
from gateway.outbox.stranger import OWN_SIDES
from tests.gateway.outbox.outbox_kit import event, opened, settings

KEY = b"-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n"


def database(file: Path) -> None:
    """The closed database of another program."""
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE mail (text)")
    db.close()


def node(file: Path) -> None:
    """What `/dev/null` is, but not the one of this machine."""
    try:
        os.mknod(file, 0o600 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root can make a device node")


def bound(file: Path) -> None:
    """A socket, by a name short enough for one."""
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(file.parent, os.O_PATH)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{file.name}")
        finally:
            os.close(folder)


def link(file: Path) -> None:
    target = file.with_name("elsewhere")
    target.write_bytes(KEY)
    file.symlink_to(target)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        pytest.param(lambda file: file.write_bytes(KEY), "other contents", id="a key"),
        pytest.param(lambda file: file.write_text("x"), "other contents", id="one letter"),
        pytest.param(database, "another program", id="a database"),
        pytest.param(os.mkfifo, "named pipe", id="a pipe"),
        pytest.param(node, "character device", id="a device"),
        pytest.param(bound, "socket", id="a socket"),
        pytest.param(Path.mkdir, "directory", id="a directory"),
        pytest.param(link, "symbolic link", id="a link"),
    ],
)
def test_what_never_was_an_outbox_is_refused_and_left_as_it_is(
    file: Path, make: Callable[[Path], object], what: str
) -> None:
    file.parent.mkdir()
    make(file)
    before = file.lstat()
    names = set(file.parent.iterdir())
    for _ in range(2):  # the first try leaves nothing behind that would make the second believe in it
        with pytest.raises(ConfigError, match=rf"outbox\.file {file}: .*{what}.*: (name|write) "):
            Outbox.open(file, settings())
    after = file.lstat()
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert set(file.parent.iterdir()) == names


def test_control_without_the_look_a_key_is_moved_away(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.parent.mkdir()
    file.write_bytes(KEY)
    monkeypatch.setattr(store, "refuse_stranger", lambda _file: None)
    with opened(file):
        assert quarantined_name(file).read_bytes() == KEY


def test_a_database_of_another_program_is_left_alone_while_that_uses_it(file: Path) -> None:
    file.parent.mkdir()
    theirs = sqlite3.connect(file, isolation_level=None)
    theirs.execute("PRAGMA journal_mode = WAL")
    theirs.execute("CREATE TABLE mail (text)")
    theirs.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    theirs.execute("INSERT INTO mail VALUES ('dear')")
    try:
        assert side(file, "-wal").exists()
        with pytest.raises(ConfigError, match="another program"):
            Outbox.open(file, settings())
        assert theirs.execute("SELECT text FROM mail").fetchall() == [("dear",)]
        assert not quarantined_name(file).exists()
    finally:
        theirs.close()


@pytest.mark.parametrize("end", [*OWN_SIDES[:3], "-wal"])
def test_contents_of_something_else_are_damage_where_an_outbox_was(file: Path, end: str) -> None:
    with opened(file) as outbox:
        outbox.put([event(1)])
    for name in file.parent.iterdir():
        name.unlink()
    file.write_bytes(KEY)
    side(file, end).touch()
    with opened(file):
        assert quarantined_name(file).read_bytes() == KEY


@pytest.mark.parametrize("content", [b"", bytes(8192)], ids=["empty", "zeros"])
def test_a_file_with_nothing_in_it_is_taken_for_a_store_that_a_power_cut_emptied(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with opened(file) as outbox:
        assert outbox.stats().quarantined == 1


def test_a_store_that_was_copied_without_what_lies_beside_it_opens(file: Path) -> None:
    with opened(file) as outbox:
        outbox.put([event(1)])
        epoch = outbox.epoch
    for end in ("-wal", "-shm", *OWN_SIDES):
        side(file, end).unlink(missing_ok=True)
    with opened(file) as outbox:
        assert outbox.epoch == epoch
