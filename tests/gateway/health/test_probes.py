"""Probes read what the kernel tells, and say None where it tells nothing."""

from pathlib import Path

import pytest

from gateway.health import probes

MEMINFO = """\
MemTotal:        1000000 kB
MemFree:           50000 kB
MemAvailable:     400000 kB
HugePages_Total:       0
"""
PRESSURE = "some avg10=0.00 avg60=12.50 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_memory_is_read_with_its_pressure(tmp_path: Path) -> None:
    memory = probes.memory(write(tmp_path, meminfo=MEMINFO, pressure__memory=PRESSURE))
    assert memory == probes.Memory(1_024_000_000, 409_600_000, 12.5)
    assert memory.available_share == pytest.approx(0.4)


def test_an_old_kernel_tells_less_and_none_tells_nothing(tmp_path: Path) -> None:
    memory = probes.memory(write(tmp_path, meminfo="MemTotal: 1000 kB\nMemFree: 500 kB\n"))
    assert memory == probes.Memory(1_024_000, 512_000, None)
    assert probes.memory(tmp_path / "none") is None


def test_the_warmest_zone_that_is_switched_on_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        class__thermal__thermal_zone0__temp="41000\n",
        class__thermal__thermal_zone0__type="board\n",
        class__thermal__thermal_zone1__temp="78500\n",
        class__thermal__thermal_zone1__type="cpu\n",
        class__thermal__thermal_zone1__trip_point_1_type="critical\n",
        class__thermal__thermal_zone1__trip_point_1_temp="105000\n",
        class__thermal__thermal_zone2__temp="-274000\n",
        class__thermal__thermal_zone3__temp="not a number\n",
    )
    assert probes.temperature(tmp_path) == probes.Temperature("cpu", 78.5, 105.0)


def test_a_machine_without_zones_has_no_temperature(tmp_path: Path) -> None:
    assert probes.temperature(tmp_path) is None


def test_the_disk_of_a_directory_that_is_not_there_yet_is_measured(tmp_path: Path) -> None:
    disk = probes.disk(tmp_path / "a" / "b" / "c")
    assert disk.total_bytes >= disk.free_bytes > 0
    assert 0 < disk.free_share <= 1


@pytest.mark.parametrize(
    ("now_ns", "sane"),
    [(0, False), (946_684_800 * 10**9, False), (1_900_000_000 * 10**9, True), (5_000_000_000 * 10**9, False)],
)
def test_a_clock_that_was_never_set_is_not_sane(now_ns: int, sane: bool) -> None:
    assert probes.clock(lambda: now_ns, lambda: "unknown").sane == sane


def test_the_kernel_tells_about_its_clock() -> None:
    assert probes.kernel_clock_state() in ("synchronised", "free-running", "unknown")


def test_this_machine_has_a_load() -> None:
    load = probes.load()
    assert load is not None
    assert load.per_minute >= 0
    assert load.processors >= 1
