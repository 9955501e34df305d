from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.config import HealthChannel, HealthSource
from gateway.errors import SourceLostError
from gateway.sources.base import open_source
from gateway.sources.health import MachineHealth

ALL: tuple[HealthChannel, ...] = (
    *("load", "memory_used", "memory_pressure", "cpu_pressure", "temperature", "disk_used"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine: /proc and /sys/class/thermal as the kernel shows them."""
    proc, thermal = tmp_path / "proc", tmp_path / "thermal"
    (proc / "pressure").mkdir(parents=True)
    (proc / "loadavg").write_text("1.50 0.40 0.30 1/100 4242\n")
    (proc / "meminfo").write_text("MemTotal:     1000 kB\nMemFree: 100 kB\nMemAvailable:  250 kB\nHugePages: 0\n")
    line = "avg60=0.00 avg300=0.00 total=1\n"
    (proc / "pressure" / "memory").write_text(f"some avg10=12.50 {line}full avg10=2.00 {line}")
    (proc / "pressure" / "cpu").write_text(f"some avg10=50.00 {line}")
    for at, temperature in enumerate((41_000, 67_500, 30_000)):
        (thermal / f"thermal_zone{at}").mkdir(parents=True)
        (thermal / f"thermal_zone{at}" / "temp").write_text(f"{temperature}\n")
    return tmp_path


def machine(root: Path, *channels: HealthChannel) -> MachineHealth:
    settings = HealthSource(rate_hz=20, channels=channels or ALL)
    return MachineHealth("machine", settings, proc=root / "proc", thermal=root / "thermal", disk=root)


def first(source: MachineHealth) -> list[float]:
    sample: list[float] = next(source.captures()).samples[0].tolist()
    source.close()
    return sample


def test_the_channels_come_in_the_configured_order_and_unit(root: Path) -> None:
    load, used, memory, cpu, temperature, disk = first(machine(root))
    assert load > 0
    assert used == pytest.approx(0.75)
    assert memory == pytest.approx(0.125)
    assert cpu == pytest.approx(0.5)
    assert temperature == pytest.approx(67.5)
    assert 0 < disk < 1
    assert first(machine(root, "temperature", "memory_used")) == pytest.approx([67.5, 0.75])


def test_a_kernel_without_pressure_information_reports_none_and_says_so_once(root: Path) -> None:
    (root / "proc" / "pressure" / "memory").unlink()
    source = machine(root, "memory_pressure", "load")
    with capture_logs() as logs:
        captures = source.captures()
        samples = [next(captures).samples[0, 0] for _ in range(3)]
    assert samples == [0, 0, 0]
    assert [entry["event"] for entry in logs] == ["pressure_unknown"]
    source.close()


def test_a_machine_without_thermal_zones_has_a_column_less_and_says_so(root: Path) -> None:
    for zone in (root / "thermal").iterdir():
        (zone / "temp").unlink()
    with capture_logs() as logs:
        assert first(machine(root, "memory_used", "temperature")) == pytest.approx([0.75])
    assert [entry["event"] for entry in logs] == ["temperature_unknown"]


def test_a_thermal_zone_that_falls_asleep_is_left_out(root: Path) -> None:
    source = machine(root, "temperature")
    captures = source.captures()
    assert next(captures).samples[0, 0] == 67.5
    (root / "thermal" / "thermal_zone1" / "temp").unlink()
    assert next(captures).samples[0, 0] == 41
    source.close()


def test_a_machine_with_none_of_the_channels_is_told_to_choose_others(root: Path) -> None:
    for zone in (root / "thermal").iterdir():
        (zone / "temp").unlink()
    with pytest.raises(SourceLostError, match="none of the channels temperature; choose others"):
        next(machine(root, "temperature").captures())


def test_this_machine_tells_its_load_and_memory() -> None:
    source = open_source("machine", HealthSource(rate_hz=50))
    load, used = next(source.captures()).samples[0]  # type: ignore[union-attr]
    assert load >= 0
    assert 0 < used < 1
    source.close()
