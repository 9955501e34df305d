"""A publisher that is killed leaves the old repository or the new one, and the next attempt ends well."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadError, RepositoryError

from cloud_bridge.identity.database import SqliteDatabase
from cloud_bridge.registry.repository import TIMESTAMP_FILE
from cloud_bridge.registry.storage import Storage
from tests.cloud_bridge.registry.kit import Site, client, listed, release, weights
from tests.simulators.dying_storage import KILLED, DyingStorage

WRITES = 6
"""Writes of a publication with one artefact and one patch: manifest, artefact, patch, targets, snapshot, timestamp."""


def killed(tmp_path: Path, storage: DyingStorage, act: Callable[[Site], object]) -> bool:
    """Do something in a process of its own; return whether it was killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            site = Site(tmp_path, storage=storage)
            act(site)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED)
    return code == KILLED


def versions(tmp_path: Path, name: str, url: str) -> set[str]:
    """What a client that knows the first root only is offered."""
    root = (tmp_path / "keys" / "root.json").read_bytes()
    found = listed(client(tmp_path / name, Storage(url), root))
    return {path.split("/")[2] for path in found}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A repository with one release; nothing of it is open in this process, which is going to fork."""
    site = Site(tmp_path).begin()
    site.publish(release(tmp_path, "1.0.0", weights(1)))
    site.db.close()
    return tmp_path


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(WRITES))
def test_killed_at_any_write_it_is_the_old_repository_or_the_new(begun: Path, at: int, after: bool) -> None:
    made = release(begun, "1.1.0", weights(1, 0.1))
    url = str(begun / "repository")
    assert killed(begun, DyingStorage(url, at=at, after=after), lambda site: site.publish(made))
    is_new = at == WRITES - 1 and after
    assert versions(begun, "first", url) == ({"1.0.0", "1.1.0"} if is_new else {"1.0.0"})
    site = Site(begun)
    signed = set((begun / "repository" / "metadata").iterdir())
    again = site.publish(made)
    entry = again.entry
    assert again.is_new is not is_new, "what counts already is not sealed and signed once more"
    assert (set((begun / "repository" / "metadata").iterdir()) == signed) is is_new
    assert (entry.token, entry.state) == (2, "approved"), "it takes up the token of the attempt that was killed"
    assert entry.published_ns is not None
    assert versions(begun, "first", url) == {"1.0.0", "1.1.0"}
    places = {file.place for file in entry.files}
    assert set(site.registry.storage.files("targets/models/detector/1.1.0")) == places, "no leftovers"
    assert [key.release for key in site.identities.keys.all()] == ["detector@1.0.0", "detector@1.1.0"]
    site.db.close()


def test_a_publication_has_as_many_writes_as_are_tried(begun: Path) -> None:
    made = release(begun, "1.1.0", weights(1, 0.1))
    storage = DyingStorage(str(begun / "repository"), at=-1, after=False)
    site = Site(begun, storage=storage)
    site.publish(made)
    site.db.close()
    assert len(storage.written) == WRITES
    assert storage.written[-1] == TIMESTAMP_FILE


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(3))
def test_killed_while_a_release_is_taken_back_or_all_is_signed_anew_the_next_attempt_ends_it(
    begun: Path, at: int, after: bool
) -> None:
    url = str(begun / "repository")
    dying = DyingStorage(url, at=at, after=after)
    assert killed(begun, dying, lambda site: site.registry.refresh(targets=True))
    assert versions(begun, "first", url) == {"1.0.0"}
    dying = DyingStorage(url, at=at, after=after)
    assert killed(begun, dying, lambda site: site.registry.yank("detector", "1.0.0", "it sees ghosts"))
    is_new = at == 2 and after
    assert versions(begun, "first", url) == (set() if is_new else {"1.0.0"})
    site = Site(begun)
    entry = site.registry.yank("detector", "1.0.0", "it sees ghosts")
    assert (entry.is_offered, entry.yanked_why) == (False, "it sees ghosts")
    assert versions(begun, "first", url) == set()
    assert not site.registry.refresh().settled
    site.publish(release(begun, "1.1.0"))
    assert versions(begun, "first", url) == {"1.1.0"}
    site.db.close()


class _TimestampFirst(DyingStorage):
    """The control: what counts is written before what it names."""

    held: tuple[str, bytes] | None = None

    def write(self, path: str, content: bytes) -> None:
        if path.endswith(".snapshot.json"):
            self.held = (path, content)
            return
        super().write(path, content)
        if path == TIMESTAMP_FILE and self.held is not None:
            super().write(*self.held)


def test_with_the_timestamp_written_first_a_kill_breaks_the_repository(begun: Path) -> None:
    made = release(begun, "1.1.0", weights(1, 0.1))
    url = str(begun / "repository")
    assert killed(begun, _TimestampFirst(url, at=WRITES - 2, after=True), lambda site: site.publish(made))
    with pytest.raises((RepositoryError, DownloadError)):
        versions(begun, "first", url)


def test_files_without_a_rename_are_torn_by_a_kill(begun: Path) -> None:
    """The other control: why metadata is never written in place."""
    url = str(begun / "repository")

    def write_in_place(site: Site) -> None:
        file = begun / "repository" / TIMESTAMP_FILE
        content = file.read_bytes()
        with file.open("wb") as opened:
            opened.write(content[: len(content) // 2])
            opened.flush()
            os._exit(KILLED)

    assert killed(begun, DyingStorage(url, at=-1, after=False), write_in_place)
    with pytest.raises(RepositoryError):
        versions(begun, "first", url)


@pytest.mark.parametrize("at", range(3))
def test_killed_while_it_begins_it_begins_again_with_the_same_keys(tmp_path: Path, at: int) -> None:
    url = str(tmp_path / "repository")
    assert killed(tmp_path, DyingStorage(url, at=at, after=True), lambda site: site.begin())
    keys = {file: file.read_bytes() for file in (tmp_path / "keys").rglob("*.pem")}
    site = Site(tmp_path).begin()
    assert {file: file.read_bytes() for file in (tmp_path / "keys").rglob("*.pem")} == keys
    site.publish(release(tmp_path))
    assert versions(tmp_path, "first", url) == {"1.0.0"}
    site.db.close()


def test_a_lock_of_a_killed_process_is_nobodys(begun: Path) -> None:
    def die_with_the_lock(site: Site) -> None:
        with site.registry.repository.lock.held():
            os._exit(KILLED)

    url = str(begun / "repository")
    assert killed(begun, DyingStorage(url, at=-1, after=False), die_with_the_lock)
    database = SqliteDatabase(begun / "identity" / "identity.db")
    with database.transaction() as tx:
        [(holder, until_ns)] = tx.rows("SELECT holder, until_ns FROM registry_locks")
    assert holder
    assert until_ns > 0, "the lease of the dead still runs"
    site = Site(begun, database=database)
    site.publish(release(begun, "1.1.0"))
    site.db.close()
