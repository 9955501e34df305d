"""One rig for all tests of a session: `--lg-env` says which; without it, the virtual one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hil.rig.budget import Budget
from hil.rig.report import Report, session
from hil.rig.rig import Rig

VIRTUAL = Path(__file__).parents[1] / "envs" / "virtual-amd64.yaml"
BUDGET = Budget()


def pytest_runtest_setup() -> None:
    """Leave out what would begin too late, and say so."""
    if why := BUDGET.over():
        pytest.skip(why)


@pytest.fixture(scope="session")
def _rig(strategy: Any, request: pytest.FixtureRequest) -> Iterator[Rig]:
    report: Report | None = request.config.pluginmanager.get_plugin("sluice-rig-report")
    rig = Rig(strategy)
    if report is not None:
        report.rig = rig
    with session(lambda: report.look(rig) if report is not None else None, strategy.close):
        yield rig


@pytest.fixture
def rig(_rig: Rig) -> Rig:
    """The device on its rig. A test begins by saying which state it needs: `rig.reach("running")`."""
    _rig.cloud.mend()
    return _rig
