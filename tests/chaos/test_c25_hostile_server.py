"""C25: a server of releases that does everything it should not, and a device that goes on asking it.

Each misbehaviour is met by the device's real client over a real socket. Whatever the server does, the device gets the
file that was signed or none, within the deadline, and its disk never holds more than the signed length. When the server
behaves again, the device has the file.
"""

import http.client
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.ota.errors import FetchError, OtaError, TrustError
from gateway.ota.fetch_pace import Limits
from gateway.ota.ways_https import HttpsWay
from tests.gateway.ota.trust_rig import Device
from tests.simulators.hostile_repository import HostileServer, Knobs, SignedRepository

pytestmark = pytest.mark.chaos

SEALED = os.urandom(3_000_000)
DEADLINE_SECONDS = 6.0
STEP_SECONDS = 2.0
LIMITS = Limits(DEADLINE_SECONDS, min_bytes_per_second=512, window_seconds=2.0)
LATEST_SECONDS = DEADLINE_SECONDS + 2 * STEP_SECONDS

MISBEHAVIOURS = {
    "endless": Knobs(endless=True, ignore_ranges=True),
    "slow, a byte at a time": Knobs(drip_seconds=0.3),
    "slow already in its headers": Knobs(drip_headers_seconds=0.3),
    "silent": Knobs(silent_after=1000),
    "404": Knobs(status=404),
    "500": Knobs(status=500),
    "redirect": Knobs(status=302),
    "truncated": Knobs(cut_after=10_000),
    "too short": Knobs(replace=SEALED[:-1]),
    "too long": Knobs(extra=b"more"),
    "other bytes": Knobs(replace=bytes(len(SEALED))),
    "wrong range": Knobs(wrong_range=True, cut_after=100_000),
    "range ignored": Knobs(ignore_ranges=True, cut_after=100_000),
}


class Watched:
    """Looks at a directory as often as it can, and remembers the most it held."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.most_bytes = 0

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.002):
            total = 0
            for entry in os.scandir(self._directory):
                try:
                    total += entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:  # renamed meanwhile
                    continue
            self.most_bytes = max(self.most_bytes, total)


@pytest.fixture
def served() -> SignedRepository:
    served = SignedRepository()
    served.add_release("press", "1.0.0", sealed=SEALED)
    served.publish()
    return served


@pytest.fixture
def server(served: SignedRepository) -> Iterator[HostileServer]:
    with HostileServer(served.files).running() as server:
        yield server


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_whatever_the_server_does_the_device_gets_the_signed_file_or_none(
    name: str, tmp_path: Path, served: SignedRepository, server: HostileServer
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "got").mkdir()
    device = Device(tmp_path / "state", served, tmp_path / "stick")
    way = HttpsWay(server.url, monotonic_ns=time.monotonic_ns, step_seconds=STEP_SECONDS, schemes=("http",))
    repository = device.repository(way, file_limits=LIMITS)
    repository.refresh()
    wanted = repository.target("models/press/1.0.0/model.tflite.sealed")
    server.knobs = replace(MISBEHAVIOURS[name], only="targets/")
    to = tmp_path / "got" / "model.sealed"
    with Watched(tmp_path / "got") as watched:
        began = time.monotonic()
        try:
            repository.fetch(wanted, to)
        except (FetchError, TrustError):
            assert not to.exists()
        else:
            assert to.read_bytes() == SEALED
        took = time.monotonic() - began
        server.knobs = Knobs()
        repository.fetch(wanted, to)
    assert took < LATEST_SECONDS
    assert to.read_bytes() == SEALED
    assert watched.most_bytes <= len(SEALED)
    assert [file.name for file in to.parent.iterdir()] == [to.name]
    way.close()


@pytest.mark.parametrize("name", ["endless", "slow, a byte at a time", "500", "redirect", "truncated"])
def test_metadata_from_such_a_server_leave_what_was_verified_as_it_was(
    name: str, tmp_path: Path, served: SignedRepository, server: HostileServer
) -> None:
    (tmp_path / "state").mkdir()
    device = Device(tmp_path / "state", served, tmp_path / "stick")
    way = HttpsWay(server.url, monotonic_ns=time.monotonic_ns, step_seconds=STEP_SECONDS, schemes=("http",))
    repository = device.repository(way, metadata_limits=LIMITS)
    repository.refresh()
    kept = {file: file.read_bytes() for file in (device.state / "ota/metadata").glob("*.json")}
    served.add_release("press", "1.0.1", token=2)
    served.publish()
    server.knobs = replace(MISBEHAVIOURS[name], only="timestamp", cut_after=100 if name == "truncated" else None)
    began = time.monotonic()
    with pytest.raises(OtaError):
        repository.refresh()
    assert time.monotonic() - began < LATEST_SECONDS
    assert {file: file.read_bytes() for file in kept} == kept
    assert [each.version for each in repository.listed()] == ["1.0.0"]
    server.knobs = Knobs()
    repository.refresh()
    assert [each.version for each in repository.listed()] == ["1.0.1", "1.0.0"]
    way.close()


def test_a_replayed_old_repository_is_refused_also_after_the_cache_was_lost(
    tmp_path: Path, served: SignedRepository, server: HostileServer
) -> None:
    (tmp_path / "state").mkdir()
    device = Device(tmp_path / "state", served, tmp_path / "stick")
    way = HttpsWay(server.url, monotonic_ns=time.monotonic_ns, step_seconds=STEP_SECONDS, schemes=("http",))
    device.repository(way).refresh()
    yesterday = dict(served.files)
    served.add_release("press", "1.0.1", token=2)
    served.publish()
    today = dict(served.files)
    device.repository(way).refresh()
    for lose in (False, True):
        if lose:
            device.forget_cache()
        server.files = yesterday
        with pytest.raises(TrustError):
            device.repository(way).refresh()
        server.files = today
        device.repository(way).refresh()
    # Control: a device that was never here believes yesterday's state, which is signed and has not expired.
    (tmp_path / "new" / "state").mkdir(parents=True)
    server.files = yesterday
    stranger = Device(tmp_path / "new" / "state", served, tmp_path / "stick")
    stranger.repository(way).refresh()
    assert [each.version for each in stranger.repository(way).listed()] == ["1.0.0"]
    way.close()


def test_without_its_guards_the_same_servers_fill_the_disk_or_never_end(
    tmp_path: Path, served: SignedRepository, server: HostileServer
) -> None:
    """The control: reading a way without limits takes more than was signed, and goes on beyond the deadline."""
    way = HttpsWay(server.url, monotonic_ns=time.monotonic_ns, step_seconds=STEP_SECONDS, schemes=("http",))
    place = served.place("models/press/1.0.0/model.tflite.sealed")
    server.knobs = Knobs(endless=True, ignore_ranges=True)
    with (tmp_path / "careless").open("wb") as out:
        for chunk in way.read(place, 0, 1 << 40):
            out.write(chunk)
            if out.tell() > 3 * len(SEALED):
                break
    assert (tmp_path / "careless").stat().st_size > 3 * len(SEALED) - 100_000
    way.close()
    server.knobs = Knobs(drip_seconds=0.3)
    began = time.monotonic()
    for _ in way.read(place, 0, len(SEALED)):
        if time.monotonic() - began > LATEST_SECONDS:
            break
    assert time.monotonic() - began > LATEST_SECONDS
    way.close()


@pytest.mark.parametrize("name", ["too short", "too long", "other bytes", "truncated", "404", "500"])
def test_c25_control_whoever_takes_what_comes_has_something_else_than_was_signed(
    name: str, served: SignedRepository, server: HostileServer
) -> None:
    server.knobs = replace(MISBEHAVIOURS[name], only="targets/")
    url = f"{server.url}/{served.place('models/press/1.0.0/model.tflite.sealed')}"
    got = b""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("GET", urlsplit(url).path)
    try:
        answer = connection.getresponse()
        while block := answer.read1(65_536):
            got += block
    except (http.client.HTTPException, OSError):
        pass  # the careless keep what they have
    finally:
        connection.close()
    assert got != SEALED
