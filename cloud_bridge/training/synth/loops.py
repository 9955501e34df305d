"""Slow values of a plant and of a computer, with and without something wrong.

A series is one channel of a few hundred to a few thousand samples. The sampling interval is left open, as it is for
the model: what is a daily cycle at one reading in five minutes is a quarter of an hour at one a second. Loops follow
their set point through a first-order lag and carry AR(1) noise; a computer's load is bursts of work through the
kernel's exponential average, its memory steps, creeps and is collected.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

Floats = NDArray[np.float64]
Trouble = Literal["spike", "drift", "stuck", "oscillation", "level-shift", "noise-burst"]
TROUBLES: Final[tuple[Trouble, ...]] = ("spike", "drift", "stuck", "oscillation", "level-shift", "noise-burst")


@dataclass(frozen=True, slots=True)
class Troubled:
    """A series with something wrong in it, and the same without."""

    series: Floats
    clean: Floats
    start: int  # the first sample that is wrong
    end: int  # the last


def temperature(n: int, random: np.random.Generator) -> Floats:
    """A controlled temperature in °C: set point with rare changes, a daily cycle, noise, sometimes a coarse sensor."""
    lag = random.uniform(15, 120)
    level = _lagged(_steps(n, random, centre=random.uniform(15, 90), size=random.uniform(0.2, 1.2), every=500), lag)
    noise = _ar1(n, random, memory=random.uniform(3, 60)) * random.uniform(0.1, 0.5)
    series = level + _cycle(n, random, random.uniform(0.5, 3)) + noise + random.normal(0, random.uniform(0.02, 0.2), n)
    return _coarse(series, float(random.choice([0.0, 0.01, 0.0625, 0.1, 0.5])))


def pressure(n: int, random: np.random.Generator) -> Floats:
    """A pressure in kPa around its set point, with the pump's slow beat in it."""
    level = _lagged(_steps(n, random, centre=random.uniform(200, 5000), size=random.uniform(2, 20), every=600), 20)
    beat = random.uniform(0, 10) * np.sin(2 * np.pi * np.arange(n) / random.uniform(9, 60) + random.uniform(0, 6))
    noise = _ar1(n, random, memory=random.uniform(2, 20)) * random.uniform(4, 25)
    return _coarse(level + beat + noise + random.normal(0, 2, n), float(random.choice([0.0, 1.0, 5.0])))


def flow(n: int, random: np.random.Generator) -> Floats:
    """A flow in litres a minute: turbulent noise in proportion, set point changes, a shallow cycle."""
    centre = random.uniform(20, 400)
    level = _lagged(_steps(n, random, centre=centre, size=0.02 * centre, every=600), 20)
    turbulent = _ar1(n, random, memory=random.uniform(1, 8)) * random.uniform(0.005, 0.03)
    return np.maximum(level * (1 + turbulent) + _cycle(n, random, random.uniform(0.005, 0.03) * centre), 0)


def load(n: int, random: np.random.Generator) -> Floats:
    """A load average for each core: jobs come in bursts, the kernel averages, and tells it in steps of five seconds."""
    interval = float(random.choice([0.1, 1.0, 1.0, 5.0]))  # seconds between samples
    hold = max(int(5 / interval), 1)
    ticks = n // hold + 2
    running = np.zeros(ticks)
    at = 0
    while at < ticks:
        idle = max(int(random.exponential(random.uniform(5, 120))), 1)
        busy = max(int(random.pareto(1.5) * 4), 1)
        running[at + idle : at + idle + busy] = random.uniform(0.05, 1.2)
        at += idle + busy
    running += np.maximum(random.normal(random.uniform(0.02, 0.4), 0.05, ticks), 0)
    pole = np.exp(-5 / 60)
    averaged = np.asarray(lfilter([1 - pole], [1, -pole], running, zi=[pole * running[0]])[0])
    return np.round(np.repeat(averaged, hold)[:n], 2)


def memory(n: int, random: np.random.Generator) -> Floats:
    """The share of memory in use: creeping, with allocations, releases and collections."""
    creep = np.cumsum(random.normal(0, 2e-4, n))
    jumps = (random.random(n) < 0.004) * random.exponential(0.02, n) * random.choice([-1.0, 1.0], n)
    teeth = random.uniform(0, 0.02) * (np.arange(n) % random.integers(60, 400)) / 400
    used: Floats = np.clip(random.uniform(0.1, 0.7) + creep + np.cumsum(jumps) + teeth, 0, 1)
    return used


KINDS: Final[tuple[Callable[[int, np.random.Generator], Floats], ...]] = (temperature, pressure, flow, load, memory)
PLANT: Final = KINDS[:3]


def trouble(
    series: Floats, kind: Trouble, at: int, *, spread: float, strength: float, random: np.random.Generator
) -> Troubled:
    """Put something wrong into a series.

    Args:
        series: a healthy one.
        kind: what goes wrong.
        at: the sample at which it begins.
        spread: what one unit of strength is worth, usually the spread of the samples before.
        strength: how far it goes, in spreads; a stuck sensor has none.
        random: signs, lengths and shapes.
    """
    broken = series.copy()
    length = {"spike": int(random.integers(1, 4))}.get(kind, int(random.integers(40, 120)))
    end = min(at + length, len(series))
    span = end - at
    reach = strength * spread * float(random.choice([-1.0, 1.0]))
    match kind:
        case "spike":
            broken[at:end] += reach * random.uniform(0.8, 1.2, span)
        case "drift":
            broken[at:end] += reach * np.linspace(0, 1, span)
        case "stuck":
            broken[at:end] = broken[at - 1]
        case "oscillation":
            broken[at:end] += reach * np.sin(2 * np.pi * np.arange(span) / random.uniform(4, 12))
        case "level-shift":
            broken[at:end] += reach
        case "noise-burst":
            broken[at:end] += abs(reach) * random.normal(0, 0.6, span)
    return Troubled(broken, series, at, end - 1)


def _steps(n: int, random: np.random.Generator, centre: float, size: float, every: float) -> Floats:
    changes = (random.random(n) < 1 / every) * random.normal(0, size, n)
    wandering = np.zeros(n)
    offset = 0.0
    for at in np.flatnonzero(changes):
        offset = 0.5 * offset + changes[at]  # people come back to the usual set point
        wandering[at:] = offset
    return centre + wandering


def _lagged(values: Floats, samples: float) -> Floats:
    pole = np.exp(-1 / samples)
    return np.asarray(lfilter([1 - pole], [1, -pole], values, zi=[pole * values[0]])[0])


def _cycle(n: int, random: np.random.Generator, amplitude: float) -> Floats:
    angle = 2 * np.pi * np.arange(n) / random.uniform(150, 900) + random.uniform(0, 2 * np.pi)
    cycle: Floats = amplitude * (np.sin(angle) + 0.25 * np.sin(2 * angle + random.uniform(0, 6)))
    return cycle


def _ar1(n: int, random: np.random.Generator, memory: float) -> Floats:
    """Unit variance, correlated over `memory` samples."""
    pole = np.exp(-1 / memory)
    return np.asarray(lfilter([np.sqrt(1 - pole**2)], [1, -pole], random.normal(0, 1, n)))


def _coarse(series: Floats, step: float) -> Floats:
    return np.round(series / step) * step if step else series
