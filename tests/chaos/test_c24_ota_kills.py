"""C24: an update of a model, killed in front of what changes the disk, leaves the old release or the new one.

In front of every sync and every rename in both forms; in front of every directory that is made and every name that is
removed, and of some of the writes, in the long one. `storage/test_c24_recorded_disk.py` cuts the power instead.
"""

import shutil
import sys
from pathlib import Path

import pytest

from gateway.errors import GatewayError
from tests.chaos.experiment import Experiment
from tests.chaos.storage import ota_oracle
from tests.chaos.storage import ota_victim as storage_victim
from tests.chaos.storage.ota_oracle import OtaVerdict
from tests.gateway.ota import ota_victim
from tests.gateway.ota.ota_victim import NEW, OLD, device, prepare
from tests.gateway.ota.rig import Device
from tests.gateway.vault import kills
from tests.simulators.published_repository import publish

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(kills.missing()), reason=kills.missing()),
]

CALLS = ("fsync", "rename")
LONG_CALLS = (*CALLS, "mkdir", "unlink", "unlinkat", "rmdir", "write")
MOST = 100
"""So many of a kind are tried at most; of the writes, which are many, as many as these."""
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
    for call in LONG_CALLS if experiment.long else CALLS:
        for number in range(1, MOST):
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


def test_c24_control_an_update_that_makes_room_first_leaves_neither_when_it_is_killed(experiment: Experiment) -> None:
    """Kills as above, and the release that runs removed before the next one is stored: then there is nothing to run."""
    published, pristine = experiment.directory / "published", experiment.directory / "one"
    publish(published, storage_victim.BIASES)
    storage_victim.first_release(pristine, published)
    victim = [sys.executable, str(Path(storage_victim.__file__)), "--make-room-first"]
    outcomes: dict[str, OtaVerdict] = {}
    for call in ("mkdir", "rmdir"):  # before it makes room, and where the old one has been emptied
        work = experiment.directory / call
        shutil.copytree(pristine, work)
        assert kills.run_killed_at([*victim, str(work), str(published)], call, 1)
        verdict = ota_oracle.judge(work, published, (f"wish {storage_victim.WISHES[0]}",), set())
        experiment.log("killed", call=call, number=1, runs=verdict.runs, faults=verdict.faults)
        outcomes[call] = verdict
    assert outcomes["mkdir"].runs == storage_victim.FIRST
    assert outcomes["rmdir"].neither, "no kill has left neither: it sees nothing"


def test_c24_control_a_file_that_was_cut_short_is_not_loaded(root: Path) -> None:
    """What would be left of an artefact that is written where it lies: the journal names it, and it does not load."""
    made = device(root)
    ota_victim.update(made)
    stored = next((root / "device/state/models/probe" / NEW).glob("*.sealed"))
    stored.write_bytes(stored.read_bytes()[:-100])
    with pytest.raises(GatewayError):
        loads(device(root))
