"""The soak: a whole gateway at twenty times its rate, and nothing that grows.

    make test-chaos ARGS="--minutes 60 -k soak"

An hour at this rate does what twenty hours do. Memory, descriptors, threads and files are looked at every few
seconds; a series fails when its slope would, for sure, carry it over its cap within 30 days: days at the sensor's own
rate for what grows with work done, memory and files, and days by the clock for descriptors and threads.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hil.loopback.children import Child
from hil.loopback.rig import Rig
from tests.chaos.experiment import Experiment
from tests.chaos.footprint import Footprint
from tests.chaos.sitestand import SiteStand
from tests.chaos.stand import MIB
from tests.chaos.timing import pause
from tests.chaos.trend import Trend, trend_of

RATE_FACTOR = 20
WINDOWS_A_SECOND = 4.0
"""What the sensor gives at its own speed."""
SHORT_SECONDS = 35.0
WARM_UP_SHARE = 0.3
# A leak of 26 bytes with each record is the least that is caught: at the sensor's own rate it makes 256 MiB in 30 days.
BY_WORK = {"rss_bytes", "wal_bytes", "store_bytes"}
CAPS = {"rss_bytes": 256.0 * MIB, "fds": 64.0, "threads": 16.0, "wal_bytes": 256.0 * MIB, "store_bytes": 1024.0 * MIB}
# What a start may still add while a short look is taken; nothing in the long form.
SETTLING = {"rss_bytes": 12.0 * MIB, "fds": 4.0, "threads": 4.0, "wal_bytes": 8.0 * MIB, "store_bytes": 8.0 * MIB}
RECORD_BYTES = 3000.0
"""What a record may take in the bridge's store, with its indexes."""


class BusySite(SiteStand):
    """A site whose motor is replayed at twenty times its speed, and which tells of every window."""

    def _make_rig(self) -> Rig:
        rig = super()._make_rig()
        rig.gateway_settings["sources"]["loud"]["speed"] = 1.0 * RATE_FACTOR
        for rule in rig.gateway_settings["pipelines"]["motor"]["rules"]:
            rule["update_seconds"] = 0.001
        return rig


@dataclass(slots=True)
class Series:
    """Samples of one figure."""

    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def trend(self) -> Trend:
        """Return the trend after the warm-up."""
        start = self.times[0] + WARM_UP_SHARE * (self.times[-1] - self.times[0])
        first = next(at for at, when in enumerate(self.times) if when >= start)
        return trend_of(self.times[first:], self.values[first:])


class Watch:
    """Looks at processes and files, again and again."""

    def __init__(self, processes: dict[str, int], files: dict[str, Path]) -> None:
        self._processes, self._files = processes, files
        self.series: dict[tuple[str, str], Series] = {}

    def look(self) -> None:
        """Take one sample of everything."""
        now = time.monotonic()
        for (name, figure), value in self._figures():
            series = self.series.setdefault((name, figure), Series())
            series.times.append(now)
            series.values.append(value)

    def _figures(self) -> Iterator[tuple[tuple[str, str], float]]:
        for name, pid in self._processes.items():
            footprint = Footprint.of(pid)
            yield (name, "rss_bytes"), footprint.rss_bytes
            yield (name, "fds"), footprint.fds
            yield (name, "threads"), footprint.threads
        for name, file in self._files.items():
            wal = Path(f"{file}-wal")
            yield (name, "wal_bytes"), wal.stat().st_size if wal.exists() else 0
            yield (name, "store_bytes"), file.stat().st_size if file.exists() else 0

    def leaks(self, *, long: bool) -> dict[str, str]:
        """Return what surely grows too fast, in words."""
        found = {}
        for (name, figure), series in self.series.items():
            trend = series.trend()
            speed = RATE_FACTOR if figure in BY_WORK else 1
            if trend.leaks(CAPS[figure] * speed, 0.0 if long else SETTLING[figure]):
                month = trend.grows_by() / speed
                found[f"{name} {figure}"] = f"{trend.low:.4g} a second at least: {month:.4g} in 30 days, {trend}"
        return found

    def thinned(self, count: int = 120) -> dict[str, list[float]]:
        """Return the figures themselves, a choice of them: what a slope looks like tells what makes it."""
        return {
            f"{name} {figure}": series.values[:: max(1, len(series.values) // count)]
            for (name, figure), series in self.series.items()
        }

    def trends(self) -> dict[str, Any]:
        """Return all trends, for the log."""
        return {f"{name} {figure}": series.trend() for (name, figure), series in self.series.items()}


def test_soak_at_twenty_times_the_rate_nothing_grows(experiment: Experiment) -> None:
    seconds = experiment.seconds(SHORT_SECONDS)
    every = 5.0 if experiment.long else 1.0
    with BusySite(experiment) as stand:
        stand.start()
        stand.remember()
        pids = {name: child.pid for name, child in stand.processes().items()}
        watch = Watch(pids, {"outbox": stand.rig.outbox_file})
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            watch.look()
            pause(every)
        committed = stand.committed()
        size = stand.database.stat().st_size
        rate = committed / seconds
        experiment.log("soaked", seconds=seconds, records=committed, rate=round(rate, 1), trends=watch.trends())
        assert rate >= 0.8 * WINDOWS_A_SECOND * RATE_FACTOR, (
            f"only {rate:.1f} records a second: not the load that was meant"
        )
        assert size / committed <= RECORD_BYTES, f"{size / committed:.0f} bytes a record in the bridge"
        experiment.log("series", **watch.thinned())
        leaks = watch.leaks(long=experiment.long)
        assert not leaks, "\n".join(f"{name}: {words}" for name, words in leaks.items())
        stand.settle(least=int(committed / 4))


def test_soak_control_a_leaking_neighbour_is_caught(experiment: Experiment) -> None:
    file = experiment.directory / "grows.db"
    command = [sys.executable, "-m", "tests.simulators.leaky_process", "--descriptors", "1", "--file", str(file)]
    # As little as the short form can tell from a start: half a megabyte a second.
    neighbour = Child("leaky", [*command, "--bytes", str(MIB // 2)], experiment.directory / "leaky.log")
    neighbour.start()
    try:
        neighbour.wait_until(file.exists, "the leak has begun")
        watch = Watch({"neighbour": neighbour.pid}, {"neighbour": file})
        for _ in range(40):
            watch.look()
            pause(0.25)
    finally:
        neighbour.kill()
    experiment.log("leaked", trends=watch.trends())
    # Extrapolated to the length of the soak, each of them would be far above what a start adds.
    leaks = {
        figure
        for (_, figure), series in watch.series.items()
        if series.trend().leaks(CAPS[figure], SETTLING[figure] * series.trend().seconds / SHORT_SECONDS)
    }
    assert leaks == {"rss_bytes", "fds", "store_bytes"}
    assert watch.leaks(long=True).keys() == {"neighbour rss_bytes", "neighbour fds", "neighbour store_bytes"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5.0 + 2.0 * number for number in range(50)], 2.0),
        ([7.0] * 50, 0.0),
        ([1e9 if number == 25 else 3.0 * number for number in range(50)], 3.0),
    ],
)
def test_soak_the_slope_is_the_one_of_most_samples(values: list[float], expected: float) -> None:
    trend = trend_of([float(number) for number in range(50)], values)
    assert trend.slope == pytest.approx(expected)
    assert trend.low <= expected <= trend.high
    assert trend.leaks(cap=1e6) == (expected > 0)
