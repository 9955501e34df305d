"""Gives the system what a claim has settled: network, time servers, host name, SSH. At each boot, and after a claim.

The root file system is read-only, and its daemons do not know the data partition: so their files are copied to
`/run`, where networkd and timesyncd look too, and they are told.
"""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.appliance.errors import ApplianceError
from gateway.appliance.places import Places
from gateway.appliance.provisioning import read_provisioned
from gateway.appliance.reset import keep_reset_code

log = structlog.get_logger()

Run = Callable[[Sequence[str]], str]
"""Runs a command; returns "" or what went wrong, in words."""

_COMMAND_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Activated:
    """What was given to the system."""

    networks: tuple[str, ...]
    time_servers: bool
    ssh: bool
    failed: tuple[str, ...]  # commands that went wrong, in words; nothing else stops for one


def activate(places: Places, run: Run) -> Activated:
    """Give the system what is settled; may be done any number of times. Needs root.

    Raises:
        OSError: `/run` cannot be written.
    """
    failed: list[str] = []

    def told(*command: str) -> None:
        problem = run(command)
        if problem:
            log.warning("activation_failed", command=" ".join(command), error=problem)
            failed.append(f"{' '.join(command)}: {problem}")

    units = sorted((places.settings / "network").glob("10-sluice-*.network"))
    networks = places.run / "systemd/network"
    networks.mkdir(parents=True, exist_ok=True)
    stale = {file.name for file in networks.glob("10-sluice-*.network")} - {file.name for file in units}
    for name in stale:
        (networks / name).unlink(missing_ok=True)
    for unit in units:
        shutil.copyfile(unit, networks / unit.name)
    if units or stale:
        told("networkctl", "reload")
    servers = places.settings / "timesyncd.conf"
    if servers.is_file():
        directory = places.run / "systemd/timesyncd.conf.d"
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(servers, directory / "10-sluice.conf")
        told("systemctl", "try-restart", "systemd-timesyncd.service")
    record = read_provisioned(places)
    if record is not None:
        told("hostname", "--", record.gateway)  # a name may begin with `-`
        try:
            keep_reset_code(places, record)
        except ApplianceError as error:
            log.warning("reset_code_not_kept", error=str(error))
            failed.append(str(error))
    ssh = (places.settings / "ssh/authorized_keys").is_file()
    if ssh:
        told("systemctl", "start", "--no-block", "ssh.service")
    log.info("appliance_activated", networks=len(units), time_servers=servers.is_file(), ssh=ssh)
    return Activated(tuple(unit.name for unit in units), servers.is_file(), ssh, tuple(failed))


def run_command(command: Sequence[str]) -> str:
    """Run a command of the system; returns "" or what went wrong, in words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"
