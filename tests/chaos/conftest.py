"""Options and the fixture of the chaos experiments: a printed seed, and a long form with a time argument."""

import random
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.experiment import Experiment
from tests.chaos.namespaces import Network, missing

HERE: Final = Path(__file__).parent
SHORT_TIMEOUT_SECONDS: Final = 420.0
"""None takes more than a minute or two by itself; machines are shared."""
LONGEST: Final = (
    *("test_c32", "test_c29", "test_c15", "test_c26", "test_soak", "test_c30_postgresql", "test_c14_no", "test_c24"),
    *("test_c09", "test_c18", "test_c10", "test_c23", "test_c22", "test_c11", "test_c02", "test_c01"),
)
"""Of several workers none is to begin one of these when the others have nothing left to do."""
_EXPERIMENT: Final = pytest.StashKey[Experiment]()
_FAILED: Final = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `make test-chaos`."""
    group = parser.getgroup("chaos", "chaos experiments")
    group.addoption("--seed", type=int, default=None, help="repeat the random choices of an earlier run")
    group.addoption(
        "--minutes",
        type=float,
        default=None,
        help="the long form: 60 gives the full counts of the catalogue, other lengths scale them",
    )
    group.addoption("--schedule", type=Path, default=None, help="of C32: a schedule that an earlier run has written")


def pytest_configure(config: pytest.Config) -> None:
    """Draw a seed where none was given; with several workers the first process draws it for all."""
    if config.getoption("seed", None) is None:
        config.option.seed = random.SystemRandom().randrange(1 << 31)


def pytest_report_header(config: pytest.Config) -> str:
    """Say the seed and the form."""
    minutes = config.getoption("minutes", None)
    form = "short form" if minutes is None else f"long form, --minutes {minutes:g}"
    return f"chaos: --seed {config.option.seed} ({form})"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is here as chaos, before tests are chosen by their marks, and give it time; see `LONGEST`."""
    minutes = config.getoption("minutes", None)
    seconds = SHORT_TIMEOUT_SECONDS if minutes is None else max(1800.0, 3 * 60 * float(minutes))
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker("chaos")
        if item.get_closest_marker("timeout") is None:
            # A signal, unlike the default, lets `finally` remove namespaces, mounts and processes.
            item.add_marker(pytest.mark.timeout(seconds, method="signal"))
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    here = HERE in item.path.parents
    return next((at for at, name in enumerate(LONGEST) if here and item.name.startswith(name)), len(LONGEST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say with a failure how to repeat it and where its log is."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        experiment = item.stash.get(_EXPERIMENT, None)
        if experiment is not None:
            words = f"{experiment.repeat()}\nwhat was done and seen: {experiment.log_file}"
            report.sections.append(("repeat this experiment", words))
    return report


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> Iterator[Experiment]:
    """Begin an experiment with a directory of its own, which stays when the experiment fails."""
    item: pytest.Item = request.node
    name = re.sub(r"[^A-Za-z0-9_]+", "-", item.name).strip("-")
    # Not below pytest's own directory: the path of a unix socket has 107 bytes at most.
    directory = Path(tempfile.mkdtemp(prefix="sluice-chaos-"))
    minutes = request.config.getoption("minutes", None)
    begun = Experiment.named(name, request.config.getoption("seed"), directory, minutes)
    item.stash[_EXPERIMENT] = begun
    print(f"{begun.name}: {begun.repeat()}")
    begun.log("began", name=name, seed=begun.seed, minutes=minutes)
    yield begun
    if not item.stash.get(_FAILED, False):
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def network() -> Iterator[Network]:
    """Make hosts of network namespaces, or skip where that cannot be."""
    if reason := missing():
        pytest.skip(reason)
    with Network() as made:
        yield made
