"""The relay between RAUC and the repository."""

import hashlib
import http.client
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from gateway.osupdate.relay import Relayed, Streamed, part_of, relay
from gateway.ota.errors import BudgetError, MismatchError, UnreachableError
from gateway.ota.fetch_budget import Unmetered
from gateway.ota.ways import DirectoryWay

CONTENT = bytes(range(256)) * 5000
TAIL = 1234


class Meter(Unmetered):
    """Knob: `left`, how many bytes may pass."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.spent_bytes = 0

    def allow(self, feature: str, size_bytes: int) -> bool:
        if size_bytes > self.left:
            return False
        self.left -= size_bytes
        return True

    def give_back(self, feature: str, size_bytes: int) -> None:
        self.left += size_bytes


def streamed(directory: Path, content: bytes = CONTENT) -> tuple[DirectoryWay, Streamed]:
    (directory / "targets").mkdir(parents=True)
    (directory / "targets" / "b").write_bytes(content)
    digest = hashlib.sha256(CONTENT[-TAIL:]).hexdigest()
    return DirectoryWay(directory), Streamed("targets/b", len(CONTENT), TAIL, digest)


def asked(address: str, span: str | None, path: str | None = None, method: str = "GET") -> tuple[int, bytes, str]:
    host, _, place = address.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=20)
    try:
        headers = {"range": f"bytes={span}"} if span is not None else {}
        connection.request(method, path or f"/{place}", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("content-range", "")
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (None, CONTENT),
        ("0-3", CONTENT[:4]),
        ("1000-", CONTENT[1000:]),
        (f"{len(CONTENT) - TAIL - 5}-{len(CONTENT) - 1}", CONTENT[-TAIL - 5 :]),
        (f"{len(CONTENT) - 8}-{len(CONTENT) + 99}", CONTENT[-8:]),
    ],
)
def test_every_part_is_the_part_that_was_asked_for(tmp_path: Path, span: str | None, expected: bytes) -> None:
    way, bundle = streamed(tmp_path)
    with relay(way, Unmetered(), bundle, Relayed()) as address:
        status, content, where = asked(address, span)
    assert content == expected
    assert status == (200 if span is None else 206)
    assert (span is None) == (where == "")


def test_nobody_who_does_not_know_the_address_gets_anything(tmp_path: Path) -> None:
    way, bundle = streamed(tmp_path)
    with relay(way, Unmetered(), bundle, Relayed()) as address:
        assert asked(address, None, path="/bundle.raucb")[0] == 404
        assert asked(address, None, path="/../targets/b")[0] == 404
        assert asked(address, f"{len(CONTENT)}-")[0] == 416
    with pytest.raises(OSError, match="refused"):
        asked(address, None)


def test_a_bundle_with_another_signature_part_is_not_relayed(tmp_path: Path) -> None:
    way, bundle = streamed(tmp_path, CONTENT[:-1] + b"x")
    with pytest.raises(MismatchError), relay(way, Unmetered(), bundle, Relayed()):
        pass


def test_a_source_that_changes_the_signature_part_later_is_not_listened_to(tmp_path: Path) -> None:
    way, bundle = streamed(tmp_path)
    with relay(way, Unmetered(), bundle, Relayed()) as address:
        (tmp_path / "targets" / "b").write_bytes(CONTENT[:-1] + b"x")
        assert asked(address, f"{len(CONTENT) - TAIL}-")[1] == CONTENT[-TAIL:]


def test_the_budget_of_the_link_is_kept_and_what_lacks_is_told(tmp_path: Path) -> None:
    way, bundle = streamed(tmp_path)
    seen = Relayed()
    with relay(way, Meter(TAIL + 5000), bundle, seen) as address:
        status, _, _ = asked(address, None)
    assert status == 503
    assert isinstance(seen.error, BudgetError)


class BreakingWay(DirectoryWay):
    """Knob: fails after so many reads."""

    reads = 0

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        self.reads += 1
        if self.reads > 2:
            raise UnreachableError("the bridge is away")
        yield from super().read(path, offset, limit)


def test_a_source_that_goes_away_ends_the_answer_short(tmp_path: Path) -> None:
    _, bundle = streamed(tmp_path)
    seen = Relayed()
    way = BreakingWay(tmp_path)
    with relay(way, Unmetered(), bundle, seen, pauses=()) as address, pytest.raises(http.client.IncompleteRead):
        asked(address, None)
    assert isinstance(seen.error, UnreachableError)


class BusyWay(DirectoryWay):
    """Refuses every second time."""

    reads = 0

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        self.reads += 1
        if self.reads % 2 == 0:
            raise UnreachableError("HTTP status 429")
        yield from super().read(path, offset, limit)


def test_a_source_that_is_asked_too_often_is_asked_again_before_rauc_hears_of_it(tmp_path: Path) -> None:
    _, bundle = streamed(tmp_path)
    seen = Relayed()
    with relay(BusyWay(tmp_path), Unmetered(), bundle, seen, pauses=(0.01,)) as address:
        assert asked(address, None)[1] == CONTENT
    assert seen.error is None


def test_many_at_once_get_what_they_ask_for(tmp_path: Path) -> None:
    way, bundle = streamed(tmp_path)
    wrong: list[int] = []
    with relay(way, Unmetered(), bundle, Relayed()) as address:

        def ask(number: int) -> None:
            span = f"{number * 1000}-{number * 1000 + 4999}"
            if asked(address, span)[1] != CONTENT[number * 1000 : number * 1000 + 5000]:
                wrong.append(number)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("header", ["bytes=5-2", "bytes=-5", "pages=1-2", "bytes=a-b", "", "bytes=99-"])
def test_ranges_that_no_download_needs_have_no_part(header: str) -> None:
    assert part_of(header, 10) is None
