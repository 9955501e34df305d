"""The relay between RAUC and the repository."""

import hashlib
import http.client
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import suppress
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


def test_after_a_source_was_away_for_too_long_nothing_more_is_waited_for_nor_given(tmp_path: Path) -> None:
    """RAUC 1.13 leaves adaptive mode when a block is missing, and would fetch the whole system from who is back."""

    class AwayWay(CountingWay):
        is_away = False

        def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
            if self.is_away:
                self.reads += 1
                raise UnreachableError("the bridge is away")
            yield from super().read(path, offset, limit)

    _, bundle = streamed(tmp_path)
    seen, way = Relayed(), AwayWay(tmp_path)
    with relay(way, Unmetered(), bundle, seen, pauses=(0.01, 0.01)) as address:
        assert asked(address, f"0-{PART - 1}")[0] == 206
        way.is_away, way.reads = True, 0
        far = 20 * PART  # not read ahead
        assert asked(address, f"{far}-{far + PART - 1}")[0] == 503
        assert way.reads == 3, "it is tried again before it is given up"
        assert asked(address, f"{far}-{far + PART - 1}")[0] == 503
        assert way.reads == 3
        way.is_away = False
        assert asked(address, f"{far}-{far + PART - 1}")[0] == 503
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


class CountingWay(DirectoryWay):
    """Tells how often it was read, and how many bytes it gave."""

    reads = 0
    given_bytes = 0

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        self.reads += 1
        for piece in super().read(path, offset, limit):
            self.given_bytes += len(piece)
            yield piece


PART = 32 * 1024


def in_parts(address: str, offsets: Iterable[int]) -> bytes:
    return b"".join(asked(address, f"{offset}-{offset + PART - 1}")[1] for offset in offsets)


def test_the_relay_reads_ahead_of_who_reads_on(tmp_path: Path) -> None:
    _, bundle = streamed(tmp_path)
    way = CountingWay(tmp_path)
    with relay(way, Unmetered(), bundle, Relayed()) as address:
        assert in_parts(address, range(0, 20 * PART, PART)) == CONTENT[: 20 * PART]
    assert way.reads <= 9


def test_who_picks_blocks_that_are_near_each_other_makes_the_relay_fetch_nothing_in_vain(tmp_path: Path) -> None:
    """An update that changes a little everywhere: each block that is missing is within reach of the one before."""
    _, bundle = streamed(tmp_path)
    way = CountingWay(tmp_path)
    offsets = [run * PART for start in range(0, 32, 4) for run in (start, start + 1, start + 2)]
    with relay(way, Unmetered(), bundle, Relayed()) as address:
        assert in_parts(address, offsets) == b"".join(CONTENT[offset : offset + PART] for offset in offsets)
    assert way.given_bytes == TAIL + len(offsets) * PART


def test_what_is_read_ahead_of_who_stops_reading_on_is_half_of_what_was_read(tmp_path: Path) -> None:
    _, bundle = streamed(tmp_path)
    for parts in range(4, 20):
        way = CountingWay(tmp_path)
        with relay(way, Unmetered(), bundle, Relayed()) as address:
            in_parts(address, range(0, parts * PART, PART))
        assert way.given_bytes <= TAIL + parts * PART * 1.5


def test_who_skips_and_who_counts_bytes_gets_what_was_asked_for_and_no_more(tmp_path: Path) -> None:
    class Counted(Unmetered):
        def room(self, feature: str) -> int | None:
            return 1 << 30

    _, bundle = streamed(tmp_path)
    for meter, step in ((Unmetered(), 2 * PART), (Counted(), PART)):
        way = CountingWay(tmp_path)
        offsets = range(0, 10 * step, step)
        with relay(way, meter, bundle, Relayed()) as address:
            assert in_parts(address, offsets) == b"".join(CONTENT[offset : offset + PART] for offset in offsets)
        assert way.given_bytes == TAIL + len(offsets) * PART


def test_what_cannot_be_read_ahead_is_missed_only_when_it_is_asked_for(tmp_path: Path) -> None:
    class EndingWay(DirectoryWay):
        def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
            if offset < len(CONTENT) - TAIL and offset + limit > 2 * PART:
                yield from super().read(path, offset, max(0, 2 * PART - offset))
                raise UnreachableError("the bridge is away")
            yield from super().read(path, offset, limit)

    _, bundle = streamed(tmp_path)
    seen = Relayed()
    with relay(EndingWay(tmp_path), Unmetered(), bundle, seen, pauses=()) as address:
        assert in_parts(address, range(0, 2 * PART, PART)) == CONTENT[: 2 * PART]
        assert seen.error is None
        assert asked(address, f"{2 * PART}-{3 * PART - 1}")[0] == 503
    assert isinstance(seen.error, UnreachableError)


def test_a_relay_that_has_ended_leaves_its_source_alone(tmp_path: Path) -> None:
    """RAUC went on reading after the gateway had given an installation up; the next relay uses the same source."""
    going_on, left = threading.Event(), threading.Event()

    class HeldWay(DirectoryWay):
        held = False

        def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
            if offset >= len(CONTENT) - TAIL:  # the signature part
                yield from super().read(path, offset, limit)
                return
            assert not left.is_set()
            self.held = True
            going_on.set()
            try:
                for piece in super().read(path, offset, limit):
                    time.sleep(0.1)  # a slow link: the rest would take two seconds
                    yield piece
            finally:
                self.held = False

    _, bundle = streamed(tmp_path)
    way = HeldWay(tmp_path)
    with relay(way, Unmetered(), bundle, Relayed()) as address:

        def read() -> None:
            with suppress(http.client.IncompleteRead):  # it is told that something is missing
                asked(address, "0-")

        reading = threading.Thread(target=read)
        reading.start()
        assert going_on.wait(10)
    assert not way.held
    left.set()
    reading.join(30)
    assert not reading.is_alive()
