"""C24: an update of a model, killed in front of every sync and every rename, leaves the old release or the new one."""

import shutil
import sys
from pathlib import Path

import pytest

from gateway.errors import GatewayError
from tests.chaos.experiment import Experiment
from tests.gateway.ota import ota_victim
from tests.gateway.ota.ota_victim import NEW, OLD, device, prepare
from tests.gateway.ota.rig import Device
from tests.gateway.vault import kills

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(kills.missing()), reason=kills.missing()),
]

CALLS = ("fsync", "rename")
COMMAND = [sys.executable, str(Path(ota_victim.__file__))]


def loads(made: Device) -> str:
    """Load what a start would load, and return its version."""
    model = made.load(made.agent._serving.label("motor"))
    model.close()
    return model.ref.version


@pytest.fixture
def root(experiment: Experiment) -> Path:
    directory = experiment.directory / "pristine"
    prepare(directory)
    made = device(directory)  # the vault is there, and the old release is sealed
    made.load(made.agent.run_begins("motor")).close()
    return directory


def test_c24_killed_at_every_step_the_old_or_the_new_release_runs(experiment: Experiment, root: Path) -> None:
    work = experiment.directory / "w"
    found: list[str] = []
    for call in CALLS:
        for number in range(1, 100):
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(root, work)
            if not kills.run_killed_at([*COMMAND, str(work)], call, number):
                break
            version = loads(device(work))
            experiment.log("killed", call=call, number=number, loads=version)
            assert version in (OLD, NEW)
            found.append(version)
            # A second start converges, whatever the first has left.
            made = device(work)
            ota_victim.update(made)
            assert made.serving == NEW, f"{call} {number}: {made.slot}"
            slot = device(work).slot
            assert (slot.trial, slot.wanted) == (None, None), f"{call} {number}: {slot}"
            leftovers = [*work.rglob("*.part"), *work.rglob("*.partial")]
            assert not [each for each in leftovers if "vault" not in each.parts], f"{call} {number}: {leftovers}"
    experiment.log("done", points=len(found), old=found.count(OLD), new=found.count(NEW))
    assert len(found) >= 30
    assert {*found} == {OLD, NEW}


def test_c24_an_update_in_place_would_be_caught(root: Path) -> None:
    """The control: the journal first, and then the file, written where it lies: killed in between, neither loads."""
    made = device(root)
    ota_victim.update(made)
    stored = next((root / "device/state/models/probe" / NEW).glob("*.sealed"))
    stored.write_bytes(stored.read_bytes()[:-100])
    with pytest.raises(GatewayError):
        loads(device(root))
