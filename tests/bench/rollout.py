"""The gate of rollouts: how long it takes for a large fleet, how often it is wrong, and how often it sees a shift."""

import os
import random
import time
from array import array
from bisect import bisect_right
from functools import cache
from typing import Any, Final

import msgspec

from cloud_bridge.config import Rollout
from cloud_bridge.rollout.figures import Figures
from cloud_bridge.rollout.gates import Seen, Thresholds, is_due, judge, seen_now
from cloud_bridge.rollout.service import thresholds_from
from cloud_bridge.rollout.statistics import bin_of
from gateway.wire.histogram import Histogram
from tests.bench.table import row

DEVICES: Final = 10_000
EVENTS: Final = 40
"""Of each device on each side: 800,000 scores in all."""
ROLLOUTS: Final = 2_000
SEED: Final = 20_261_121

_HOUR_NS: Final = 3600 * 1_000_000_000
_EDGES: Final = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)


def gate(devices: int = DEVICES, events: int = EVENTS) -> dict[str, Any]:
    """One evaluation of all gates over the telemetry of a fleet, on one core; the larger one shows how it grows."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        whole, half = _seconds(devices, events), _seconds(devices // 2, events)
    finally:
        os.sched_setaffinity(0, cores)
    return {
        "rows": [
            row(
                f"rollout gate, all gates over {devices:,} devices and {2 * devices * events:,} scores, one core",
                f"{whole:.2f} s",
                aim="≤ 1 s",
                met=whole <= 1.0,
            )
        ],
        "devices": devices,
        "scores": 2 * devices * events,
        "seconds": round(whole, 4),
        "seconds_for_half": round(half, 4),
        "growth": round(whole / half, 2),
    }


def errors(rollouts: int = ROLLOUTS) -> dict[str, Any]:
    """False halts of equal releases over repeated looks, and shifts of a fifth that are caught."""
    equal, shifted = aa_rollouts(rollouts), ab_rollouts(rollouts)
    return {
        "rows": [
            row(
                f"equal releases that are halted, {rollouts:,} rollouts, looked at up to 3,000 events",
                f"{equal['share']:.2%}",
                aim="≤ 5 %",
                met=equal["share"] <= 0.05,
            ),
            row(
                f"confidence a fifth lower, caught in the first wave within 500 events, {rollouts:,} rollouts",
                f"{shifted['power']:.1%}",
                aim="≥ 95 %",
                met=shifted["power"] >= 0.95,
            ),
        ],
        "equal": equal,
        "equal_in_bursts_of_5": aa_rollouts(rollouts, burst=5),
        "equal_uncorrected": aa_rollouts(rollouts, corrected=False),
        "shifted": shifted,
    }


def aa_rollouts(
    rollouts: int = ROLLOUTS, seed: int = SEED, *, corrected: bool = True, burst: int = 1
) -> dict[str, Any]:
    """Roll out a release that is the old one, again and again; each canary is looked at until it has 3,000 events.

    With `burst`, so many events in a row are of one scene, with nearly one score: the tests take them for independent.
    """
    limits = thresholds_from(Rollout())
    if not corrected:
        limits = msgspec.structs.replace(limits, min_effect=1e-9)
    halts = looks = 0
    for number in range(rollouts):
        chance = random.Random(seed * 1_000_003 + number)
        halted, seen = _canary(chance, limits, shift=0.0, events=3000, corrected=corrected, burst=burst)
        halts += halted is not None
        looks += seen
    return {"rollouts": rollouts, "looks": looks, "false_halts": halts, "share": halts / rollouts}


def ab_rollouts(rollouts: int = ROLLOUTS, seed: int = SEED, *, shift: float = 0.2) -> dict[str, Any]:
    """Roll out a release whose confidence is lower by a share, to one device, and count what 500 events show."""
    limits = thresholds_from(Rollout())
    found = []
    for number in range(rollouts):
        halted, _ = _canary(random.Random(seed * 1_000_003 + number), limits, shift=shift, events=500, corrected=True)
        if halted is not None:
            found.append(halted)
    return {
        "rollouts": rollouts,
        "shift": shift,
        "caught": len(found),
        "power": len(found) / rollouts,
        "median_events": sorted(found)[len(found) // 2] if found else None,
    }


def _canary(
    chance: random.Random, limits: Thresholds, *, shift: float, events: int, corrected: bool, burst: int = 1
) -> tuple[int | None, int]:
    """Let one device speak and look as the campaign does; return at how many events it halted, and the looks."""
    # Each camera has a distribution of its own, and rates of events of its own.
    high, low = chance.uniform(2.5, 10.0), chance.uniform(1.5, 4.0)
    per_minute = chance.uniform(0.5, 5.0)
    figures = {"canary": Figures()}
    old, new = figures["canary"].old, figures["canary"].new
    minute_ns = _HOUR_NS // 60
    for minute in range(int(600 / per_minute)):
        for _ in range(_poisson(chance, per_minute / burst)):
            scene = chance.betavariate(high, low)
            for _ in range(burst):
                old.add_event(scene + chance.uniform(-0.01, 0.01), minute * minute_ns)
        _interval(chance, figures["canary"], minute * minute_ns, old=True)
    seen, looks, minute = Seen(), 0, 0
    while new.events < events:
        for _ in range(_poisson(chance, per_minute / burst)):
            scene = chance.betavariate(high, low)
            for _ in range(burst):
                new.add_event((scene + chance.uniform(-0.01, 0.01)) * (1.0 - shift), minute * minute_ns)
        _interval(chance, figures["canary"], minute * minute_ns, old=False)
        minute += 1
        now = seen_now(figures.values(), seen)
        if not is_due(seen, now):
            continue
        looks += 1
        seen = Seen(looks, now.events, now.hours)
        verdict = judge(figures, limits, look=looks if corrected else 1)
        # Uncorrected: every gate, at every look, as if it were the only one.
        failed = verdict.failed if corrected else [one for one in verdict.findings if 0 < one.p <= limits.significance]
        if failed:
            return new.events, looks
    return None, looks


def _interval(chance: random.Random, figures: Figures, at_ns: int, *, old: bool) -> None:
    side = figures.old if old else figures.new
    side.add_interval(at_ns, at_ns + _HOUR_NS // 60, 60, _poisson(chance, 0.3))
    side.add_latencies(chance.choice(_minutes()))


@cache
def _minutes() -> tuple[Histogram, ...]:
    """Return what a minute of sixty latencies may look like, drawn once: most of the time went into that."""
    chance = random.Random(SEED)
    found = []
    for _ in range(2000):
        counts = [0] * (len(_EDGES) + 1)
        for _ in range(60):
            counts[bisect_right(_EDGES, chance.lognormvariate(1.6, 0.35))] += 1
        found.append(Histogram(edges=_EDGES, counts=tuple(counts)))
    return tuple(found)


def _poisson(chance: random.Random, mean: float) -> int:
    count, total = 0, chance.expovariate(1.0)
    while total < mean:
        count, total = count + 1, total + chance.expovariate(1.0)
    return count


def _seconds(devices: int, events: int) -> float:
    """Return the median of five evaluations."""
    chance = random.Random(SEED)
    some = array("H", (bin_of(chance.betavariate(8, 2)) for _ in range(100_000)))
    figures: dict[str, Figures] = {}
    counts = (0, 5, 50, 200, 300, 200, 100, 40, 20, 10, 5, 2, 1, 0)
    for number in range(devices):
        one = figures[f"gw-{number:05}"] = Figures()
        for side in (one.old, one.new):
            at = chance.randrange(len(some) - events)
            side.scores = some[at : at + events]
            side.events = events
            side.inferences, side.errors, side.hours = 10_000, 20, 8.0
            side.by_hour = {hour: [events / 8, 1.0] for hour in range(8)}
            side.add_latencies(Histogram(edges=_EDGES, counts=counts))
    limits = thresholds_from(Rollout())
    taken = []
    for look in range(1, 6):
        began = time.perf_counter()
        verdict = judge(figures, limits, look=look)
        taken.append(time.perf_counter() - began)
        assert not verdict.failed, verdict
    return sorted(taken)[2]
