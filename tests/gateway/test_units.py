"""The systemd units that ship are right, and give the daemons no more than they need."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "gateway" / "units"
SERVICES = ("gateway.service", "cloud-bridge.service")

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def installed(directory: Path, name: str, *, without: str = "") -> Path:
    """Write a unit whose program is there, as it would be on a device; perhaps without one of its lines."""
    text = (UNITS / name).read_text()
    for program in ("gateway", "cloud-bridge"):
        text = text.replace(f"/opt/sluice/bin/{program} ", "/bin/true ")
    lines = [line for line in text.splitlines() if not without or not line.startswith(without)]
    file = directory / name
    file.write_text("\n".join(lines) + "\n")
    return file


def exposed(unit: Path, threshold: int) -> bool:
    """Tell whether systemd finds the exposure (0 to 100) above a threshold."""
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", "--no-pager", str(unit)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_systemd_finds_no_mistake(tmp_path: Path, name: str) -> None:
    command = ["systemd-analyze", "verify", "--man=no", str(installed(tmp_path, name))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert name not in run.stderr


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_the_exposure_is_at_most_2(tmp_path: Path, name: str) -> None:
    assert not exposed(installed(tmp_path, name), 20)


@needs_systemd
def test_the_measure_of_exposure_sees_a_missing_directive(tmp_path: Path) -> None:
    """The control: without its bounding set, the unit is over the limit."""
    assert exposed(installed(tmp_path, "gateway.service", without="CapabilityBoundingSet"), 20)


@needs_systemd
def test_users_and_groups_of_the_units_are_made(tmp_path: Path) -> None:
    users = (UNITS / "sluice.sysusers.conf").read_text()
    named = {line.split()[1] for line in users.splitlines() if line[:2] in ("u ", "g ")}
    for name in SERVICES:
        settings = dict(line.split("=", 1) for line in (UNITS / name).read_text().splitlines() if "=" in line)
        wanted = {settings["User"], settings["Group"], *settings.get("SupplementaryGroups", "").split()}
        assert wanted <= named


def test_whoever_asks_as_the_gateways_user_has_the_groups_of_its_unit() -> None:
    users = (UNITS / "sluice.sysusers.conf").read_text()
    of_the_user = {line.split()[2] for line in users.splitlines() if line.startswith("m sluice ")}
    unit = (UNITS / "gateway.service").read_text()
    (groups,) = [line for line in unit.splitlines() if line.startswith("SupplementaryGroups=")]
    assert set(groups.partition("=")[2].split()) <= of_the_user


def test_the_daemon_notifies_and_is_watched() -> None:
    text = (UNITS / "gateway.service").read_text()
    assert "Type=notify\n" in text
    assert "WatchdogSec=" in text
    assert "RestartPreventExitStatus=4\n" in text
