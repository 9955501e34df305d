"""The registry's tables, on both databases."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud_bridge.identity.database import Database, PostgresDatabase, SqliteDatabase
from cloud_bridge.registry.errors import BusyError, NotFoundError, RegistryError
from cloud_bridge.registry.ledger import Ledger
from cloud_bridge.registry.lock import Lock
from tests.cloud_bridge.registry.kit import Clock, release
from tests.simulators.postgres import PostgresServer

_names = itertools.count()


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Database]]:
    """Opens the same database, any number of times."""
    made: list[Database] = []
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.make(f"registry{next(_names)}")

    def opening() -> Database:
        database = PostgresDatabase(url) if request.param == "postgres" else SqliteDatabase(tmp_path / "identity.db")
        made.append(database)
        return database

    yield opening
    for database in made:
        database.close()


def manifest(tmp_path: Path, version: str = "1.0.0", **parts: str) -> bytes:
    made = release(tmp_path / version / str(len(parts)), version, None, "detector", **parts)
    return (made / "manifest.json").read_bytes()


def test_numbers_rise_and_are_given_out_once(opened: Callable[[], Database]) -> None:
    ledgers = [Ledger(opened(), Clock()) for _ in range(3)]
    given: list[int] = []

    def take(ledger: Ledger) -> None:
        given.extend(ledger.next_number("x") for _ in range(10))

    threads = [threading.Thread(target=take, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(given) == list(range(1, 31))
    assert ledgers[0].next_number("x", at_least=100) == 101
    assert ledgers[0].highest("x") == 101


def test_an_unfinished_release_keeps_its_token_until_it_changes(opened: Callable[[], Database], tmp_path: Path) -> None:
    ledger = Ledger(opened(), Clock())

    def reserve(document: bytes, floor: int = 0) -> tuple[int, str]:
        entry = ledger.reserve(document, state="approved", hardware=(), accepted=(), floor=floor)
        return entry.token, entry.key_name

    first = manifest(tmp_path)
    assert reserve(first) == (1, "detector@1.0.0")
    assert reserve(first) == (1, "detector@1.0.0")
    assert reserve(manifest(tmp_path, summary="another"), floor=7) == (8, "detector@1.0.0/8")
    assert reserve(manifest(tmp_path, "2.0.0")) == (9, "detector@2.0.0")
    assert [one.version for one in ledger.releases()] == ["1.0.0", "2.0.0"]
    with pytest.raises(NotFoundError):
        ledger.entry("detector", "3.0.0")
    stale = ledger.entry("detector", "1.0.0")
    reserve(first)
    with pytest.raises(RegistryError, match="begun anew"):
        ledger.prepared(stale, [])


def test_one_holds_the_lock_until_it_is_given_back_or_lapses(opened: Callable[[], Database], tmp_path: Path) -> None:
    clock = Clock()
    one, other = Ledger(opened(), clock), Ledger(opened(), clock)
    assert one.take_lock("r", "a", 10)
    assert one.take_lock("r", "a", 10), "its holder prolongs it"
    assert not other.take_lock("r", "b", 10)
    clock.pass_days(1)
    assert other.take_lock("r", "b", 10), "a host that is gone for good holds nobody up"
    one.drop_lock("r", "a")
    assert not one.take_lock("r", "a", 10), "what lapsed is not given back for another"
    other.drop_lock("r", "b")
    assert one.take_lock("r", "a", 10)


def test_a_lock_of_another_host_is_waited_for_and_its_loss_is_noticed(
    opened: Callable[[], Database], tmp_path: Path
) -> None:
    clock = Clock()
    one, other = Ledger(opened(), clock), Ledger(opened(), clock)
    steady = [0.0]

    def sleep(seconds: float) -> None:
        steady[0] += seconds

    here = Lock(one, tmp_path / "here", host="here")
    there = Lock(other, tmp_path / "there", host="there", wait_seconds=1, monotonic=lambda: steady[0], sleep=sleep)
    with here.held() as prolong:
        with pytest.raises(BusyError), there.held():
            pass
        prolong()
        clock.pass_days(1)  # it hung for so long that the other host took over
        with there.held(), pytest.raises(BusyError, match="took over"):
            prolong()
