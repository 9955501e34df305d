"""C2: the bridge is killed in the middle of batches. (Killed at each system call: `tests/chaos/storage`.)"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.chaos.experiment import Experiment
from tests.chaos.oracle import Verdict
from tests.chaos.stand import Options, Stand
from tests.chaos.timing import at_most, pause

RECOVERY_SECONDS = 5.0


def test_c02_a_bridge_killed_at_any_moment_stores_everything_once(experiment: Experiment) -> None:
    recoveries: list[float] = []
    verdict = kill_bridge(experiment, Options(rate=2000.0), experiment.scaled(10, 200), recoveries.append)
    verdict.check(least=1000)
    experiment.log("recovered", **at_most(RECOVERY_SECONDS, recoveries))


def test_c02_control_a_bridge_that_acknowledges_before_it_commits_is_caught(experiment: Experiment) -> None:
    options = Options(rate=2000.0, bridge_module="tests.simulators.careless_bridge")
    verdict = kill_bridge(experiment, options, 3)
    assert verdict.lost > 0
    with pytest.raises(AssertionError, match="lost"):
        verdict.check()


def test_c02_control_a_bridge_without_a_key_is_caught(experiment: Experiment) -> None:
    options = Options(rate=2000.0, bridge_module="tests.simulators.forgetful_bridge")
    # Not every kill falls between a commit and its PUBACK; one that did is enough.
    verdict = kill_bridge(experiment, options, 20, enough=lambda stand: has_twice(stand.database))
    assert verdict.duplicates > 0
    with pytest.raises(AssertionError, match="duplicates"):
        verdict.check()


def has_twice(database: Path) -> bool:
    """Tell whether a store has two records of one number."""
    twice = "SELECT 1 FROM records GROUP BY gateway, epoch, class, seq HAVING count(*) > 1 LIMIT 1"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10.0)) as db:
        return db.execute(twice).fetchone() is not None


def kill_bridge(
    experiment: Experiment,
    options: Options,
    cycles: int,
    recovered: Callable[[float], object] = lambda _: None,
    *,
    enough: Callable[[Stand], bool] = lambda _: False,
) -> Verdict:
    """Kill a bridge at random moments, so often or until it is enough; drain, and judge."""
    with Stand(experiment, options) as stand:
        stand.start()
        stand.remember()
        for cycle in range(cycles):
            pause(experiment.random.uniform(0.05, 0.5))
            stand.rig.bridge.kill()
            stand.ask("burst")
            stand.rig.start_bridge()
            seconds = stand.flows(options.burst)
            recovered(seconds)
            experiment.log("killed", cycle=cycle, recovery_seconds=round(seconds, 3))
            if enough(stand):
                break
        stand.drained()
        verdict = stand.oracle.judge(stand.database)
        experiment.log("judged", verdict=verdict)
        stand.check_footprints()
        stand.check_logs()
    return verdict
