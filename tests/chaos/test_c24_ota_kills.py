"""C24: an update of a model, killed in front of what changes the disk, leaves the old release or the new one.

The device's own code does the update, from the twin to the proof of the release: metadata, floors, download, patch,
child, seal, journal, swap. It is killed in front of every sync and every rename in both forms; in front of every
directory that is made and every name that is removed, and of some of the writes, in the long one. How many syncs and
renames there are is counted from a trace, which must show no other call that makes anything durable.
`storage/test_c24_recorded_disk.py` cuts the power instead.
"""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from gateway.errors import GatewayError
from tests.chaos.experiment import Experiment
from tests.chaos.storage import ota_oracle, ota_victim, syscalls
from tests.chaos.storage.ota_oracle import OtaVerdict
from tests.chaos.storage.ota_victim import BIASES, FIRST, WISHES
from tests.chaos.storage.warmed import Warmed
from tests.gateway.vault import kills
from tests.simulators.published_repository import publish, signed_digests

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(kills.missing()), reason=kills.missing()),
]

CALLS: Final = ("fsync", "rename")
DURABLE: Final = (
    *CALLS,
    *("fdatasync", "sync", "syncfs", "sync_file_range", "msync", "renameat", "renameat2", "link", "linkat"),
)
"""Whatever makes something durable, or puts something in the place of something else."""
LONG_CALLS: Final = ("mkdir", "unlink", "unlinkat", "rmdir", "write")
MOST: Final = 100
"""Of these so many of a kind are tried at most; of the writes, which are many, as many as these."""
LEAST: Final = {"fsync": 30, "rename": 15}
"""An update that makes fewer of them leaves out something that it did when this was written."""
EVERY: Final = 6
"""In the short form so many kills are judged, and one of them is started once more and must end with the last one."""
VICTIM: Final = (sys.executable, str(Path(ota_victim.__file__)))


class Site:
    """What was published, and a device that runs the first of it."""

    def __init__(self, directory: Path) -> None:
        self.published = directory / "published"
        publish(self.published, BIASES)
        self.signed = signed_digests(self.published)
        self._pristine = directory / "pristine"
        ota_victim.first_release(self._pristine, self.published)
        self.work = directory / "w"

    def fresh(self) -> list[str]:
        """Put the device back to where it was; returns the arguments of the victim that updates it."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self._pristine, self.work)
        return [str(self.work), str(self.published)]

    def judged(self) -> OtaVerdict:
        """Start the device, and say what it runs."""
        return ota_oracle.judge(self.work, self.published, (f"wish {WISHES[0]}",), self.signed)


@pytest.fixture
def site(experiment: Experiment) -> Site:
    return Site(experiment.directory)


def counted(trace: Path) -> Counter[str]:
    """Return how often a traced program has made each call at which it is to be killed; all of them must be such."""
    calls = [*syscalls.calls(trace)]
    others = {call.name for call in calls} - {*CALLS}
    assert not others, f"nobody kills at {', '.join(sorted(others))}"
    assert len({call.thread for call in calls}) == 1, "calls are counted in each thread"
    return Counter(call.name for call in calls)


def points(experiment: Experiment, steps: Counter[str]) -> Iterator[tuple[str, int]]:
    """Yield calls and their numbers, as far as is known how many there are."""
    for call in CALLS:
        yield from ((call, number) for number in range(1, steps[call] + 1))
    for call in LONG_CALLS if experiment.long else ():
        yield from ((call, number) for number in range(1, MOST))


def test_c24_killed_at_every_step_the_old_or_the_new_release_runs(experiment: Experiment, site: Site) -> None:
    with Warmed(ota_victim.__name__, experiment.directory / "victims.log") as victim:
        trace = experiment.directory / "trace"
        assert victim.run(site.fresh(), [*syscalls.recorded(trace, DURABLE)]) == 0
        _kill_everywhere(experiment, site, victim, counted(trace))


def _kill_everywhere(experiment: Experiment, site: Site, victim: Warmed, steps: Counter[str]) -> None:
    experiment.log("counted", **steps)
    assert all(steps[call] >= least for call, least in LEAST.items()), steps
    found: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    through: set[str] = set()
    for turn, (call, number) in enumerate(points(experiment, steps)):
        if call in through:
            continue
        if not victim.killed_at(site.fresh(), call, number):
            through.add(call)
            continue
        killed[call] += 1
        verdict = site.judged()
        experiment.log("killed", call=call, number=number, runs=verdict.runs, torn=verdict.torn_downloads)
        assert not verdict.faults, f"{call} {number}: {verdict.faults}"
        found[verdict.runs] += 1
        if experiment.long or not turn % EVERY:  # a second start converges, whatever the first has left
            faults = ota_oracle.converge(site.work, site.published)
            assert not faults, f"{call} {number}: {faults}"
    assert {call: killed[call] for call in CALLS} == {call: steps[call] for call in CALLS}
    for call in CALLS:  # the control of the count: there is none after the last one
        assert not victim.killed_at(site.fresh(), call, steps[call] + 1)
    experiment.log("done", points=killed.total(), runs=dict(found))
    print(f"{dict(killed)} kills, then runs {dict(found)}")
    assert {*found} == {FIRST, WISHES[0]}


@pytest.mark.parametrize("durable", ["os.fdatasync(fd)", "os.link('a', 'b')", "os.rename('a', 'b', src_dir_fd=here)"])
def test_c24_control_a_new_kind_of_durable_step_would_be_noticed(experiment: Experiment, durable: str) -> None:
    program = f"import os\nos.chdir({str(experiment.directory)!r})\nfd = os.open('a', os.O_CREAT | os.O_RDWR)\n"
    program += f"here = os.open('.', os.O_RDONLY)\nos.fsync(fd)\n{durable}"
    trace = experiment.directory / "trace"
    subprocess.run(
        syscalls.traced([sys.executable, "-c", program], trace, DURABLE, None), check=True, capture_output=True
    )
    with pytest.raises(AssertionError, match="nobody kills at"):
        counted(trace)


def test_c24_control_an_update_that_makes_room_first_leaves_neither_when_it_is_killed(
    experiment: Experiment, site: Site
) -> None:
    """Kills as above, and the release that runs removed before the next one is stored: then there is nothing to run."""
    outcomes: dict[str, OtaVerdict] = {}
    for call in ("mkdir", "rmdir"):  # before it makes room, and where the old one has been emptied
        assert kills.run_killed_at([*VICTIM, *site.fresh(), "--make-room-first"], call, 1)
        outcomes[call] = verdict = site.judged()
        experiment.log("killed", call=call, number=1, runs=verdict.runs, faults=verdict.faults)
    assert outcomes["mkdir"].runs == FIRST
    assert outcomes["rmdir"].neither, "no kill has left neither: it sees nothing"


def test_c24_control_a_file_that_was_cut_short_is_not_loaded(site: Site) -> None:
    """What would be left of an artefact that is written where it lies: the journal names it, and it does not load."""
    site.fresh()
    assert site.judged().runs == FIRST, "whole it is"
    stored = next((site.work / "state/models/probe" / FIRST).glob("*.sealed"))
    stored.write_bytes(stored.read_bytes()[:-100])
    made = ota_victim.device(site.work, site.published)
    made.repository.grant(made.vault)
    with pytest.raises(GatewayError):
        made.load(f"probe@{FIRST}")
