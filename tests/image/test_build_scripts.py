"""The small programs of the overlay, run with stand-ins for what they call."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "image/overlay/usr/lib/sluice"
UNITS = SCRIPTS.parents[1] / "lib/systemd/system"


def called(tmp_path: Path, script: str, *words: str, programs: dict[str, str], **environment: str) -> list[str]:
    """Run a script; returns what it called, a line each. programs: by name, what they do besides."""
    folder, log = tmp_path / "bin", tmp_path / "called"
    folder.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    for name, body in programs.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{log}\n{body}\n')
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **environment}
    done = subprocess.run(
        ["sh", str(SCRIPTS / script), *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines()


SYSTEMCTL = """
case "$*" in
  is-failed*) exec test {state} = failed ;;
  *Result*) echo {result} ;;
  *ExecMainStatus*) echo {status} ;;
esac
"""


@pytest.mark.parametrize(
    ("state", "result", "status", "starts_again"),
    [
        ("failed", "signal", 9, True),
        ("failed", "exit-code", 1, True),
        ("failed", "signal", 4, True),
        ("failed", "exit-code", 4, False),  # a person must change its configuration
        ("active", "success", 0, False),
    ],
)
def test_a_device_starts_again_for_a_gateway_that_cannot_be_kept_running_and_for_no_other(
    tmp_path: Path, state: str, result: str, status: int, *, starts_again: bool
) -> None:
    systemctl = SYSTEMCTL.format(state=state, result=result, status=status)
    calls = called(tmp_path, "stuck", programs={"systemctl": systemctl}, SLUICE_STUCK_SECONDS="0")
    assert ("systemctl --no-block reboot" in calls) is starts_again


def test_a_gateway_that_somebody_has_mended_meanwhile_keeps_the_device_running(tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    programs = {
        "systemctl": f"[ ! -e {mended} ] || exit 1\n" + SYSTEMCTL.format(state="failed", result="signal", status=9),
        "sleep": f"touch {mended}",
    }
    calls = called(tmp_path, "stuck", programs=programs, SLUICE_STUCK_SECONDS=str(1 << 40))
    assert "systemctl --no-block reboot" not in calls
    assert "sleep 10" in calls


def test_the_unit_of_the_gateway_asks_for_that_and_waits_half_an_hour() -> None:
    assert "OnFailure=sluice-stuck.service" in (UNITS / "gateway.service.d/10-appliance.conf").read_text()
    assert "SLUICE_STUCK_SECONDS=1800" in (UNITS / "sluice-stuck.service").read_text()


@pytest.mark.parametrize("has_bundle", [True, False])
def test_a_medium_stays_mounted_for_reading_only_while_a_bundle_is_on_it(tmp_path: Path, *, has_bundle: bool) -> None:
    media = tmp_path / "media"
    content = f"mkdir -p {media}/stick1; touch {media}/stick1/notes.txt"
    content += f"; touch {media}/stick1/update.raucb" if has_bundle else ""
    empty = f"rm -f {media}/stick1/*"
    calls = called(tmp_path, "medium", "stick1", programs={"mount": content, "umount": empty}, SLUICE_MEDIA=str(media))
    assert " -o ro,nosuid,nodev,noexec,nosymfollow," in calls[0]
    assert calls[0].endswith(f"/dev/stick1 {media}/stick1")
    assert (calls[1:] == []) is has_bundle
    assert (media / "stick1").exists() is has_bundle


def test_erasing_is_not_stopped_by_the_loss_of_the_partitions_that_it_erases() -> None:
    """They leave the partition table first; systemd then stops their mounts, and all that requires them."""
    unit = (UNITS / "sluice-erase.service").read_text()
    assert "WantsMountsFor=/data" in unit
    assert not [line for line in unit.splitlines() if line.startswith(("Requires", "BindsTo"))]
