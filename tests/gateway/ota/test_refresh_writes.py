"""What a refresh writes, and what is there when it is killed meanwhile."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.ota.fetch import FRESH_STEP_NS
from gateway.ota.floor import Floor
from gateway.ota.trust import Role
from gateway.ota.trust_store import MetadataFiles
from tests.gateway.ota.trust_rig import Device, nanoseconds
from tests.gateway.vault.kills import missing, run_killed_at
from tests.simulators.hostile_repository import SignedRepository

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
ROLES: tuple[Role, ...] = ("timestamp", "snapshot", "targets")
VICTIM = Path(__file__).with_name("refresh_victim.py")


@pytest.fixture
def device(tmp_path: Path) -> Device:
    served = SignedRepository()
    served.add_release("detector", "1.0.0")
    served.publish()
    return Device(tmp_path / "state", served, tmp_path / "stick")


def command(device: Device) -> list[str]:
    device.served.save(device.stick)
    parts = (device.state, device.root_file, device.stick, nanoseconds(device.wall))
    return [sys.executable, str(VICTIM), *map(str, parts)]


def syncs(device: Device, tmp_path: Path) -> int:
    """Refresh in a process; return how often that waited for the disk."""
    trace = tmp_path / "trace"
    calls = ["strace", "-f", "-qqq", "-o", str(trace), "-e", "trace=fsync,fdatasync,sync_file_range,syncfs,sync"]
    subprocess.run([*calls, *command(device)], check=True, timeout=60)
    return len(re.findall(r"sync\w*\(", trace.read_text()))


def test_a_refresh_that_finds_nothing_new_waits_for_no_disk(device: Device, tmp_path: Path) -> None:
    assert syncs(device, tmp_path) == 7  # four roles, their names together, the floors and their name
    assert syncs(device, tmp_path) == 0
    device.served.publish()  # control: what is new is written
    assert syncs(device, tmp_path) == 6


def test_the_time_of_a_refresh_is_written_down_once_an_hour(device: Device) -> None:
    floor = Floor(device.state / "ota/floors.json")
    device.refresh()
    first = floor.read().fresh_ns
    device.later(seconds=FRESH_STEP_NS / 1e9 - 1)
    repository = device.refresh()
    assert floor.read().fresh_ns == first
    device.later(seconds=1)
    repository.refresh()
    assert floor.read().fresh_ns == first + FRESH_STEP_NS


def test_a_refresh_killed_anywhere_leaves_each_role_old_or_new_and_the_next_one_ends_it(device: Device) -> None:
    device.refresh()
    kept = MetadataFiles(device.state / "ota/metadata", device.state / "ota/floors.json")
    floor = Floor(device.state / "ota/floors.json")
    points = 0
    for call in ("fsync", "rename"):
        for number in range(1, 60):
            old = {role: kept.read(role) for role in ROLES}
            floors = floor.read()
            device.served.publish()
            killed = run_killed_at(command(device), call, number)
            new = {role: device.served.signed(role) for role in old}
            assert all(kept.read(role) in (old[role], new[role]) for role in old), (call, number)
            assert floor.read().timestamp >= floors.timestamp
            device.repository().refresh()
            assert {role: kept.read(role) for role in old} == new, (call, number)
            points += killed
            if not killed:
                break
    assert points == 6 + 4
