"""The system gets what the claim has settled, at each boot, and no more than that."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.appliance.activation import activate, run_command
from gateway.appliance.claim import read_claim
from gateway.appliance.places import Places
from gateway.appliance.placing import Placing
from gateway.appliance.plan import BASE, plan
from gateway.appliance.provisioning import read_provisioned
from gateway.appliance.reset import reset_digest
from tests.gateway.appliance.claims import NOW_NS, device, text, whole_claim


@dataclass
class System:
    """Writes down what it is told."""

    told: list[str] = field(default_factory=list)
    problem: str = ""

    def run(self, command: Sequence[str]) -> str:
        self.told.append(" ".join(command))
        return self.problem


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return device(tmp_path)


def take(places: Places, **more: object) -> None:
    placing = Placing(places.settings, places.state)
    placing.prepare(plan(read_claim(text(**more), "c"), BASE, origin="stick", image="", now_ns=NOW_NS))
    placing.commit()


def test_network_time_name_and_ssh_are_as_the_claim_says(places: Places) -> None:
    take(places, **whole_claim())
    system = System()
    done = activate(places, system.run)
    unit = places.run / "systemd/network/10-sluice-0.network"
    assert "Address=192.0.2.7/24" in unit.read_text()
    assert "NTP=ntp.plant.example" in (places.run / "systemd/timesyncd.conf.d/10-sluice.conf").read_text()
    assert system.told == [
        "networkctl reload",
        "systemctl try-restart systemd-timesyncd.service",
        "hostname -- dock-7",
        "systemctl start --no-block ssh.service",
    ]
    assert (done.networks, done.time_servers, done.ssh, done.failed) == (("10-sluice-0.network",), True, True, ())


def test_a_small_claim_changes_only_the_name_and_starts_no_ssh(places: Places) -> None:
    take(places)
    system = System()
    assert activate(places, system.run).ssh is False
    assert system.told == ["hostname -- dock-7"]


def test_the_boot_partition_knows_the_digest_of_the_reset_code_where_a_claim_has_brought_one(places: Places) -> None:
    take(places, **whole_claim(), reset_digest=reset_digest("abcd-efgh-jkmn-pqrs"))
    activate(places, System().run)
    known = read_provisioned(places)
    assert known is not None
    assert known.reset_digest is not None
    assert known.reset_digest in places.reset_code.read_text()
    places.esp.joinpath("sluice-reset-code.json").unlink()
    places.esp.rmdir()
    assert "sluice-reset-code.json" in activate(places, System().run).failed[0]


def test_an_unprovisioned_device_is_left_as_the_image_made_it(places: Places) -> None:
    system = System()
    activate(places, system.run)
    assert system.told == []


def test_what_an_earlier_claim_has_settled_goes(places: Places) -> None:
    take(places, **whole_claim())
    activate(places, System().run)
    take(places)
    system = System()
    activate(places, system.run)
    assert list((places.run / "systemd/network").iterdir()) == []
    assert "networkctl reload" in system.told


def test_a_command_that_fails_is_told_and_stops_nothing(places: Places) -> None:
    take(places, **whole_claim())
    system = System(problem="no bus")
    done = activate(places, system.run)
    assert len(system.told) == 4
    assert done.failed[0] == "networkctl reload: no bus"


def test_commands_of_the_system_answer_in_words() -> None:
    assert run_command(["true"]) == ""
    assert run_command(["sh", "-c", "echo oh >&2; exit 3"]) == "oh"
    assert run_command(["false"]) == "status 1"
    assert "no-such-program" in run_command(["no-such-program"])
