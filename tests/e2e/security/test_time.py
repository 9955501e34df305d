"""Certificates that live for an hour, on devices that are away for weeks and whose clocks are wrong."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hil.loopback.rig import Placement, Rig, eventually
from hil.loopback.tally import tally_of
from tests.chaos.clocks import WallClock
from tests.e2e.flow import arrives, logged, settle, waits
from tests.e2e.security.conftest import Secured
from tests.e2e.security.steps import enrolled, happened, renew, runs, site_of, waits_for_identity

DAY = 86_400.0


class Clocks(Placement):
    """Processes whose wall clocks can be set: that of the gateway by itself, those of broker and bridge together."""

    def __init__(self, folder: Path) -> None:
        self.gateway = WallClock(folder / "gateway-clock")
        self.cloud = WallClock(folder / "cloud-clock")

    def prefix(self, process: str) -> list[str]:
        return self.gateway.command if process == "gateway" else self.cloud.command


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    return Clocks(tmp_path)


def test_a_site_that_was_off_for_six_weeks_comes_back_by_itself(secured: Secured, clocks: Clocks) -> None:
    """Over are by then the gateway's certificate, those of broker and bridge, and the revocation list."""
    # By its own clock the bridge has had the first records for 45 days: that is no reason to delete them here.
    kept = {"retention": {f"{each}_days": 365.0 for each in ("critical", "event", "measure", "bulk")}}
    rig = enrolled(secured(placement=clocks, bridge=kept))
    rig.bridge.kill()
    rig.broker.kill()
    waits(rig, tally_of(rig).enqueued + 10)
    rig.gateway.kill()
    for clock in (clocks.gateway, clocks.cloud):
        clock.step(45 * DAY)
    rig.start_broker()
    rig.start_gateway()
    runs(rig, "motor")
    waits(rig, tally_of(rig).enqueued + 10)
    assert tally_of(rig).waiting >= 10
    rig.start_bridge()
    waits_for_identity(rig, "valid", seconds=60.0)
    arrives(rig)
    settle(rig)


def test_a_certificate_that_the_broker_finds_over_is_renewed_without_waiting_for_half_life(
    secured: Secured, clocks: Clocks
) -> None:
    """As after a machine was suspended together with its clock, or its virtual machine was."""
    rig = enrolled(secured(placement=clocks))
    clocks.cloud.step(2 * 3600.0)
    rig.broker.kill()
    rig.start_broker()
    waits(rig, tally_of(rig).enqueued + 10)
    arrives(rig)
    settle(rig)


@pytest.mark.parametrize("year", [1970, 2045])
def test_a_gateway_in_another_year_enrols_renews_and_delivers(secured: Secured, clocks: Clocks, year: int) -> None:
    clocks.gateway.set_to(datetime(year, 2, 1, tzinfo=UTC))
    rig = enrolled(secured(placement=clocks))
    # Without a clock that is held against the bridge's nobody would get in from there.
    assert "certificate" in plain_tls(rig, clocks)
    renew(rig)
    assert [entry["level"] for entry in logged(rig, "clock_wrong")] == ["warning"]
    eventually(lambda: "clock-off" in happened(rig), "the operator hears of it")
    waits(rig, tally_of(rig).enqueued + 5)
    arrives(rig)
    settle(rig)


def plain_tls(rig: Rig, clocks: Clocks) -> str:
    """Connect to the bridge as any program does that believes the machine's clock; returns what goes wrong."""
    code = (
        "import socket, ssl, sys\n"
        "context = ssl.create_default_context(cafile=sys.argv[1])\n"
        "raw = socket.create_connection(('127.0.0.1', int(sys.argv[2])), 5)\n"
        "context.wrap_socket(raw, server_hostname='localhost')\n"
    )
    trusted = str(site_of(rig).broker / "services-ca.pem")
    command = [*clocks.gateway.command, sys.executable, "-c", code, trusted, str(site_of(rig).ports.identity)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode != 0
    return done.stderr
