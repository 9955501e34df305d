"""Files: resumed at the byte, bounded in time, rate, length and budget, durable, and never other than was signed."""

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.ota.errors import (
    BudgetError,
    BusyError,
    DeadlineError,
    MismatchError,
    StoppedError,
    StorageError,
    TooLongError,
    TooSlowError,
    UnreachableError,
)
from gateway.ota.fetch import Repository
from gateway.ota.fetch_budget import Purse
from gateway.ota.fetch_offer import OfferedFile
from gateway.ota.fetch_pace import Limits, Pace
from gateway.ota.ways import DirectoryWay
from gateway.ota.ways_https import HttpsWay
from tests.gateway.ota.trust_rig import Device
from tests.simulators.hostile_repository import HostileServer, Knobs, SignedRepository
from tests.simulators.waiting import wait_for

SEALED = os.urandom(300_000)


class Meter:
    """A budget. Knob: `left`; None: everything is allowed. Tells what was spent and what is set aside."""

    def __init__(self, left: int | None = None) -> None:
        self.left = left
        self.set_aside = 0
        self.received = 0
        self.exhausted: list[int] = []

    def allow(self, feature: str, size_bytes: int) -> bool:
        if self.left is not None and size_bytes > self.left - self.set_aside:
            return False
        self.set_aside += size_bytes
        return True

    def room(self, feature: str) -> int | None:
        return None if self.left is None else max(0, self.left - self.set_aside)

    def give_back(self, feature: str, size_bytes: int) -> None:
        self.set_aside -= size_bytes

    def exhaust(self, feature: str, size_bytes: int) -> None:
        self.exhausted.append(size_bytes)

    def spent(self, feature: str, direction: str, size_bytes: int) -> None:
        assert (feature, direction) == ("model_downloads", "in")
        self.set_aside = max(0, self.set_aside - size_bytes)
        self.received += size_bytes
        if self.left is not None:
            self.left -= size_bytes


class Site:
    """A device, a server, and the sealed artefact that it wants."""

    def __init__(self, directory: Path, server: HostileServer, served: SignedRepository) -> None:
        (directory / "state").mkdir()
        self.server = server
        self.served = served
        self.meter = Meter()
        self.device = Device(directory / "state", served, directory / "stick", meter=self.meter)
        self.to = directory / "got" / "model.tflite.sealed"
        self.path = served.add_release("press", "1.0.0", sealed=SEALED)
        served.publish()
        self.file: OfferedFile | None = None

    def repository(self, limits: Limits | None = None, step_seconds: float = 5.0) -> Repository:
        way = HttpsWay(
            self.server.url, monotonic_ns=time.monotonic_ns, step_seconds=step_seconds, schemes=("http", "https")
        )
        return self.device.repository(way, **({} if limits is None else {"file_limits": limits}))

    def wanted(self) -> OfferedFile:
        self.repository().refresh()
        return self.repository().target(self.path)

    @property
    def parts(self) -> list[Path]:
        return list(self.to.parent.glob(".*.part"))

    def ranges(self) -> list[str | None]:
        return [request.range for request in self.server.requests if request.path.startswith("targets/")]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    served = SignedRepository()
    with HostileServer(served.files).running() as server:
        yield Site(tmp_path, server, served)


def test_a_file_is_there_whole_and_nothing_else_is(site: Site) -> None:
    told: list[int] = []
    got = site.repository().fetch(site.wanted(), site.to, told.append)
    assert got.read_bytes() == SEALED
    assert told[-1] == len(SEALED)
    assert told == sorted(told)
    assert site.parts == []
    assert got.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_is_not_fetched_again_and_a_damaged_one_is(site: Site) -> None:
    wanted, repository = site.wanted(), site.repository()
    repository.fetch(wanted, site.to)
    repository.fetch(wanted, site.to)
    assert len(site.ranges()) == 1
    site.to.write_bytes(SEALED[:-1] + b"\0")
    repository.fetch(wanted, site.to)
    assert site.to.read_bytes() == SEALED
    assert len(site.ranges()) == 2


# ---- resuming ----------------------------------------------------------------------------------------------------


def test_a_cut_connection_is_resumed_at_the_byte(site: Site) -> None:
    wanted = site.wanted()
    site.server.knobs = Knobs(only="targets", cut_after=100_000, cuts_left=2)
    site.repository().fetch(wanted, site.to)
    assert site.to.read_bytes() == SEALED
    begins = [int((each or "").removeprefix("bytes=").partition("-")[0]) for each in site.ranges()]
    assert begins[0] == 0
    assert begins[1] >= 50_000
    assert begins[2] >= 150_000
    # Nothing but what was cut off came twice.
    assert site.server.sent_bytes < len(SEALED) + 80_000


def test_an_interrupted_file_is_resumed_by_the_next_run(site: Site) -> None:
    wanted = site.wanted()
    site.server.knobs = Knobs(only="targets", cut_after=100_000)
    limits = Limits(deadline_seconds=0.4, min_bytes_per_second=1, window_seconds=1.0)
    with pytest.raises(UnreachableError):
        site.repository(limits).fetch(wanted, site.to)
    (part,) = site.parts
    have = part.stat().st_size
    assert 0 < have < len(SEALED)
    site.server.knobs = Knobs()
    site.server.requests.clear()
    site.repository().fetch(wanted, site.to)
    assert site.ranges() == [f"bytes={have}-{len(SEALED)}"]
    assert site.to.read_bytes() == SEALED


def test_a_part_that_was_damaged_on_the_disk_is_noticed_and_fetched_anew(site: Site) -> None:
    wanted = site.wanted()
    site.to.parent.mkdir()
    part = site.to.with_name(f".{site.to.name}.{wanted.sha256[:16]}.part")
    part.write_bytes(b"\0" * 200_000)
    site.repository().fetch(wanted, site.to)
    assert site.to.read_bytes() == SEALED
    assert len(site.ranges()) == 2  # the rest, then everything


@pytest.mark.parametrize("knobs", [Knobs(ignore_ranges=True), Knobs(wrong_range=True)], ids=["ignored", "wrong"])
def test_a_server_without_ranges_still_gives_the_file(site: Site, knobs: Knobs) -> None:
    wanted = site.wanted()
    site.to.parent.mkdir()
    site.to.with_name(f".{site.to.name}.{wanted.sha256[:16]}.part").write_bytes(SEALED[:1000])
    site.server.knobs = knobs
    site.repository().fetch(wanted, site.to)
    assert site.to.read_bytes() == SEALED
    assert len(site.ranges()) == 2


def test_a_file_that_changed_at_the_source_is_asked_for_with_its_tag(site: Site) -> None:
    wanted = site.wanted()
    site.server.knobs = Knobs(only="targets", cut_after=100_000, cuts_left=1)
    site.repository().fetch(wanted, site.to)
    tags = [request.if_range for request in site.server.requests if request.path.startswith("targets/")]
    assert tags[0] is None
    assert tags[1] == f'"{hashlib.sha256(SEALED).hexdigest()[:16]}"'


# ---- other bytes than were signed --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [len(SEALED), len(SEALED) - 1, 0], ids=["as long", "shorter", "empty"])
def test_other_bytes_are_refused_and_not_kept(site: Site, size: int) -> None:
    wanted = site.wanted()
    site.server.knobs = Knobs(only="targets", replace=b"\x07" * size)
    limits = Limits(deadline_seconds=0.4, min_bytes_per_second=1, window_seconds=1.0)
    with pytest.raises((MismatchError, UnreachableError)):
        site.repository(limits).fetch(wanted, site.to)
    assert not site.to.exists()
    site.server.knobs = Knobs()
    site.repository().fetch(wanted, site.to)  # control, and nothing of the other bytes is in the way
    assert site.to.read_bytes() == SEALED


def test_a_longer_file_is_refused_at_the_first_byte_too_many(site: Site) -> None:
    wanted = site.wanted()
    site.server.knobs = Knobs(only="targets", extra=b"!")
    with pytest.raises(TooLongError):
        site.repository().fetch(wanted, site.to)
    assert not site.to.exists()


def test_an_endless_file_takes_no_more_of_the_disk_than_was_signed(site: Site) -> None:
    wanted = site.wanted()
    site.server.knobs = Knobs(only="targets", endless=True, ignore_ranges=True)
    largest = 0

    def look(_: int) -> None:
        nonlocal largest
        largest = max(largest, *(part.stat().st_size for part in site.parts))

    with pytest.raises(TooLongError):
        site.repository().fetch(wanted, site.to, look)
    assert largest <= len(SEALED)
    assert sum(part.stat().st_size for part in site.parts) == 0
    # Control: who reads the way without a limit gets more than was signed.
    way = HttpsWay(site.server.url, monotonic_ns=time.monotonic_ns, schemes=("http",))
    careless = way.read(site.served.place(site.path), 0, 1 << 40)
    read = 0
    while read <= len(SEALED):
        read += len(next(careless))
    careless.close()
    way.close()


# ---- slow and silent ---------------------------------------------------------------------------------------------


def test_a_dripping_server_is_left_for_its_rate_though_it_never_falls_silent(site: Site) -> None:
    wanted = site.wanted()
    site.server.knobs = Knobs(only="targets", drip_seconds=0.05)
    limits = Limits(deadline_seconds=30.0, min_bytes_per_second=512, window_seconds=0.5)
    began = time.monotonic()
    with pytest.raises(TooSlowError, match="min_bytes_per_second"):
        site.repository(limits).fetch(wanted, site.to)
    assert time.monotonic() - began < 5.0
    # Control: with no minimum, it goes on until the deadline, which ends it.
    limits = Limits(deadline_seconds=1.5, min_bytes_per_second=0, window_seconds=0.5)
    began = time.monotonic()
    with pytest.raises(DeadlineError, match="deadline_seconds"):
        site.repository(limits).fetch(wanted, site.to)
    assert 1.4 < time.monotonic() - began < 5.0


@pytest.mark.parametrize(
    "knobs", [Knobs(only="targets", silent_after=1000), Knobs(only="targets", drip_headers_seconds=0.1)]
)
def test_a_server_that_falls_silent_is_left_within_a_step(site: Site, knobs: Knobs) -> None:
    wanted = site.wanted()
    site.server.knobs = knobs
    limits = Limits(deadline_seconds=1.0, min_bytes_per_second=1, window_seconds=10.0)
    began = time.monotonic()
    with pytest.raises((UnreachableError, DeadlineError)):
        site.repository(limits, step_seconds=0.5).fetch(wanted, site.to)
    assert time.monotonic() - began < 5.0


def test_slow_metadata_is_left_too(site: Site) -> None:
    site.server.knobs = Knobs(drip_seconds=0.05)
    began = time.monotonic()
    with pytest.raises((TooSlowError, DeadlineError)):
        site.repository().refresh()
    assert time.monotonic() - began < 15.0


def test_the_rate_is_of_a_window_and_not_of_the_whole() -> None:
    now = 0
    pace = Pace("file", Limits(100.0, 10, window_seconds=5.0), lambda: now)
    pace.begin()
    pace.took(1_000_000)  # a quick beginning does not pay for a slow end
    now += 5_000_000_000
    pace.took(0)
    now += 5_000_000_000
    with pytest.raises(TooSlowError):
        pace.took(49)
    assert pace.left_seconds == 90.0


# ---- the budget --------------------------------------------------------------------------------------------------


def test_nothing_passes_that_the_budget_does_not_allow(site: Site) -> None:
    wanted = site.wanted()
    site.server.sent_bytes = 0
    site.meter.left = 100_000
    with pytest.raises(BudgetError, match="model_downloads"):
        site.repository().fetch(wanted, site.to)
    assert 80_000 < site.server.sent_bytes <= 100_000
    assert site.meter.set_aside == 0
    assert site.meter.exhausted
    site.server.requests.clear()
    site.meter.left = 100_000  # the next period: it goes on at the byte
    with pytest.raises(BudgetError):
        site.repository().fetch(wanted, site.to)
    site.meter.left = 400_000
    site.repository().fetch(wanted, site.to)
    assert site.server.sent_bytes == len(SEALED)


def test_a_server_without_ranges_is_not_asked_again_and_again_over_a_small_budget(site: Site) -> None:
    wanted = site.wanted()
    site.meter.left = 100_000
    site.server.knobs = Knobs(only="targets", ignore_ranges=True)
    with pytest.raises(BudgetError):
        site.repository().fetch(wanted, site.to)
    assert len(site.ranges()) == 1
    assert site.meter.received < 150_000


def test_what_is_fetched_is_told_to_the_meter_and_nothing_stays_set_aside(site: Site) -> None:
    wanted = site.wanted()
    before = site.meter.received
    site.repository().fetch(wanted, site.to)
    assert len(SEALED) <= site.meter.received - before < len(SEALED) + 5000
    assert site.meter.set_aside == 0


def test_a_refresh_waits_for_the_budget_too(site: Site) -> None:
    site.meter.left = 500
    with pytest.raises(BudgetError):
        site.repository().refresh()
    assert site.server.requests == []


def test_a_purse_asks_before_more_passes_than_was_set_aside() -> None:
    meter = Meter(1000)
    with Purse(meter, counted_elsewhere=False) as purse:
        purse.take(600, "file")
        purse.used(700, "file")
        with pytest.raises(BudgetError):
            purse.used(400, "file")
    assert meter.received == 1100  # what has passed is counted, and no more is asked for
    assert meter.set_aside == 0


# ---- the disk, stopping, two at once -------------------------------------------------------------------------------


def test_a_disk_without_room_is_told_before_anything_is_fetched(site: Site) -> None:
    wanted = site.wanted()
    huge = OfferedFile(wanted.path, 1 << 60, wanted.sha256, {})
    with pytest.raises(StorageError, match="free space"):
        site.repository().fetch(huge, site.to)


def test_a_stop_ends_a_fetch_and_keeps_what_came(site: Site) -> None:
    wanted = site.wanted()
    site.server.knobs = Knobs(only="targets", cut_after=100_000)
    repository = site.repository(Limits(60.0, 1, 60.0))
    ended: list[Exception] = []

    def fetch() -> None:
        try:
            repository.fetch(wanted, site.to)
        except StoppedError as error:
            ended.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    wait_for(lambda: site.parts and site.parts[0].stat().st_size >= 50_000, what="something came")
    repository.stop()
    thread.join(5)
    assert ended
    assert site.parts[0].stat().st_size >= 50_000


def test_two_processes_do_not_write_one_file(site: Site) -> None:
    wanted = site.wanted()
    site.server.knobs = Knobs(only="targets", silent_after=1000)
    first = site.repository(Limits(60.0, 0, 60.0))

    def fetch() -> None:
        with pytest.raises((StoppedError, UnreachableError)):
            first.fetch(wanted, site.to)

    thread = threading.Thread(target=fetch)
    thread.start()
    wait_for(lambda: site.parts, what="the first has begun")
    with pytest.raises(BusyError):
        site.repository().fetch(wanted, site.to)
    first.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_a_link_in_place_of_the_part_is_not_followed(site: Site, tmp_path: Path) -> None:
    wanted = site.wanted()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    site.to.parent.mkdir()
    site.to.with_name(f".{site.to.name}.{wanted.sha256[:16]}.part").symlink_to(victim)
    with pytest.raises(StorageError):
        site.repository().fetch(wanted, site.to)
    assert victim.read_text() == "precious"


def test_what_an_interrupted_fetch_has_left_is_not_asked_for_again(site: Site) -> None:
    wanted = site.wanted()
    part = site.to.with_name(f".{site.to.name}.{wanted.sha256[:16]}.part")
    site.to.parent.mkdir()
    part.write_bytes(SEALED[:1000])
    repository = site.repository()
    assert repository.lacking(wanted, site.to) == len(SEALED) - 1000
    repository.fetch(wanted, site.to)
    assert repository.lacking(wanted, site.to) == 0


def test_an_imported_file_needs_no_source_and_a_damaged_one_is_fetched(site: Site) -> None:
    wanted = site.wanted()
    repository = site.repository()
    assert repository.lacking(wanted, site.to) == len(SEALED)
    assert repository.keep(wanted)
    assert not repository.keep(wanted)
    assert repository.lacking(wanted, site.to) == 0
    asked = len(site.ranges())
    repository.fetch(wanted, site.to)
    assert len(site.ranges()) == asked
    site.to.unlink()
    repository.keep(wanted)
    (site.device.state / "ota/imported" / wanted.sha256).write_bytes(b"\0" * len(SEALED))
    repository.fetch(wanted, site.to)
    assert site.to.read_bytes() == SEALED
    assert not list((site.device.state / "ota/imported").iterdir())


def test_a_file_that_is_cut_short_on_a_medium_is_refused_at_once(site: Site, tmp_path: Path) -> None:
    wanted = site.wanted()
    stick = tmp_path / "stick"
    file = stick / next(path for path in site.served.files if path.endswith(".model.tflite.sealed"))
    file.parent.mkdir(parents=True)
    file.write_bytes(SEALED[:1000])
    repository = site.device.repository(DirectoryWay(stick))
    with pytest.raises(MismatchError, match="only 1000 of"):
        repository.fetch(wanted, site.to)
    assert not site.to.exists()
