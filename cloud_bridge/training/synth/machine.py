"""A rotating machine as a three-axis accelerometer on its bearing housing feels it, in g.

A motor of about 1,480 rpm drives a fan with seven blades over a gear of 23 teeth. What is heard: the shaft and its
harmonics, the passing blades, the gear mesh with sidebands, the mains' hum at twice the line frequency, and the
rolling noise of the bearings coloured by the housing's resonances. Speed and load wander as they do in use. The
sensor adds its noise and rounds to its step (as an ADXL345 at 3,200 Hz: 3.9 mg).

Faults follow the textbook signatures (ISO 13373-3, Randall 2011): imbalance at once the shaft speed, misalignment at
twice and along the axis, an outer race defect as impulses that ring a resonance, looseness as a comb of harmonics
with half orders, a rub as one burst a turn with subharmonics.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

Floats = NDArray[np.float64]
Fault = Literal["imbalance", "misalignment", "outer-race", "looseness", "rub"]
FAULTS: Final[tuple[Fault, ...]] = ("imbalance", "misalignment", "outer-race", "looseness", "rub")

RATE_HZ: Final = 3200.0
NOMINAL_HZ: Final = 24.7  # 1,480 rpm, an induction motor at four poles
BLADES: Final = 7
TEETH: Final = 23
OUTER_RACE_ORDER: Final = 3.58  # balls and geometry of a 6205 bearing
SENSOR_STEP_G: Final = 1 / 256
SENSOR_NOISE_G: Final = 0.011  # 290 µg/√Hz over the band


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine with its sensor mounted: what differs from one to the next."""

    gain: Floats  # (3,) of the mounting, for each axis
    harmonics: Floats  # (6, 3) amplitudes at 1x..6x, g
    blade: Floats  # (2, 3)
    mesh: Floats  # (2, 3)
    hum: Floats  # (3,)
    rolling: Floats  # (3,) RMS of the bearing noise, g
    resonances: tuple[tuple[float, float], ...]  # (Hz, damping)
    phases: Floats  # (32, 3)


def build_machine(random: np.random.Generator) -> Machine:
    """Draw a healthy machine from the family."""

    def about(values: list[float] | Floats, spread: float) -> Floats:
        base = np.asarray(values, float)
        return base * np.exp(random.normal(0, spread, base.shape))

    axes = np.array([1.0, 0.85, 0.4])  # radial, radial, along the shaft
    return Machine(
        gain=about([1, 1, 1], 0.08),
        harmonics=about(np.outer([0.045, 0.018, 0.010, 0.006, 0.004, 0.003], axes), 0.25),
        blade=about(np.outer([0.020, 0.006], axes), 0.2),
        mesh=about(np.outer([0.030, 0.010], axes[::-1] + 0.3), 0.2),
        hum=about([0.010, 0.010, 0.004], 0.2),
        rolling=about([0.050, 0.045, 0.035], 0.15),
        resonances=tuple(
            (hz * float(np.exp(random.normal(0, 0.02))), damping)
            for hz, damping in ((310, 0.06), (720, 0.05), (1180, 0.04))
        ),
        phases=random.uniform(0, 2 * np.pi, (32, 3)),
    )


def run(machine: Machine, seconds: int, random: np.random.Generator, faults: Floats | None = None) -> Floats:
    """Return (seconds * 3200, 3) samples in g.

    Args:
        machine: which machine.
        seconds: how long.
        random: what drives load, speed and noise.
        faults: severity 0..1 of each of `FAULTS` for each second, (seconds, 5); None is a healthy run.
    """
    n = int(seconds * RATE_HZ)
    load = _wander(n, random, low=0.35, high=1.0)
    speed = NOMINAL_HZ * (1.015 - 0.03 * load) * (1 + 0.004 * _smooth_noise(n, random))
    turns = np.cumsum(speed) / RATE_HZ  # shaft angle in revolutions
    force = (speed / NOMINAL_HZ) ** 2
    signal = _healthy(machine, turns, force, load, random)
    if faults is not None:
        severity = np.repeat(np.asarray(faults, float), int(RATE_HZ), axis=0)
        signal += _faulty(machine, turns, force, severity, random)
    return sense(signal * machine.gain, random)


def sense(signal: Floats, random: np.random.Generator) -> Floats:
    """Add the sensor's noise, its limit of 16 g and its step."""
    noisy = signal + random.normal(0, SENSOR_NOISE_G, signal.shape)
    return np.clip(np.round(noisy / SENSOR_STEP_G) * SENSOR_STEP_G, -16, 16)


def _healthy(m: Machine, turns: Floats, force: Floats, load: Floats, random: np.random.Generator) -> Floats:
    angle = 2 * np.pi * turns
    n = len(turns)
    signal = np.zeros((n, 3))
    for order in range(6):
        signal += _tone(angle * (order + 1), m.phases[order]) * m.harmonics[order] * force[:, None]
    for k in range(2):
        signal += _tone(angle * BLADES * (k + 1), m.phases[8 + k]) * m.blade[k] * (0.4 + 0.6 * load)[:, None]
        sidebands = 1 + 0.15 * np.sin(angle + m.phases[12, 0])  # the gear is never quite round
        mesh = _tone(angle * TEETH * (k + 1), m.phases[10 + k]) * m.mesh[k]
        signal += mesh * ((0.3 + 0.7 * load) * sidebands)[:, None]
    mains: Floats = 2 * np.pi * 100 * np.arange(n, dtype=np.float64) / RATE_HZ
    signal += _tone(mains, m.phases[13]) * m.hum
    rolling = _coloured(m, random.normal(0, 1, (n, 3))) * m.rolling
    return signal + rolling * (force * (0.6 + 0.4 * load))[:, None]


def _faulty(m: Machine, turns: Floats, force: Floats, severity: Floats, random: np.random.Generator) -> Floats:
    angle = 2 * np.pi * turns
    signal = np.zeros((len(turns), 3))
    active = severity.max(axis=0) > 0
    if active[0]:
        signal += _tone(angle, m.phases[0]) * [0.45, 0.40, 0.05] * (severity[:, 0] * force)[:, None]
    if active[1]:
        twice = _tone(2 * angle, m.phases[14]) * [0.25, 0.20, 0.30] + _tone(3 * angle, m.phases[15]) * [
            0.08,
            0.06,
            0.10,
        ]
        signal += (twice + _tone(angle, m.phases[16]) * [0.03, 0.03, 0.18]) * (severity[:, 1] * force)[:, None]
    if active[2]:
        hits = _impulses(turns * OUTER_RACE_ORDER, random, jitter=0.015)
        signal += _ring(m, hits) * [1.0, 0.8, 0.4] * (1.0 * severity[:, 2] * force)[:, None]
    if active[3]:
        comb = np.sum([_tone(angle * k / 2, m.phases[16 + k]) / np.sqrt(k) for k in range(1, 13)], axis=0)
        signal += comb * np.array([0.10, 0.12, 0.05]) * (severity[:, 3] * force)[:, None]
    if active[4]:
        touching = (np.sin(angle) > 0.8).astype(float)[:, None]
        burst = _coloured(m, random.normal(0, 1, (len(turns), 3))) * touching * 0.5
        whirl = _tone(angle / 2, m.phases[30]) * 0.06 + _tone(angle / 3, m.phases[31]) * 0.04
        signal += (burst + whirl) * [1.0, 0.9, 0.5] * severity[:, 4][:, None]
    return signal


def _tone(angle: Floats, phases: Floats) -> Floats:
    sine, cosine = np.sin(angle), np.cos(angle)
    tone: Floats = sine[:, None] * np.cos(phases) + cosine[:, None] * np.sin(phases)
    return tone


def _wander(n: int, random: np.random.Generator, low: float, high: float) -> Floats:
    """Steps of load, held for 5 to 30 seconds, with a ramp between them."""
    levels: list[Floats] = []
    filled = 0
    while filled < n:
        hold = int(random.uniform(5, 30) * RATE_HZ)
        levels.append(np.full(hold, random.uniform(low, high)))
        filled += hold
    steps = np.concatenate(levels)[:n]
    pole = np.exp(-1 / (2.0 * RATE_HZ))  # two seconds to follow
    return np.asarray(lfilter([1 - pole], [1, -pole], steps, zi=[pole * steps[0]])[0])


def _smooth_noise(n: int, random: np.random.Generator) -> Floats:
    """Unit variance, with a memory of about a second."""
    coarse = random.normal(0, 1, n // int(RATE_HZ) + 3)
    smooth: Floats = np.interp(np.arange(n) / RATE_HZ, np.arange(len(coarse)), coarse)
    return smooth


def _coloured(m: Machine, white: Floats) -> Floats:
    """Pass noise through the housing: a broad floor with its resonances on top, at unit RMS."""
    shaped = 0.5 * white
    for hz, damping in m.resonances:
        shaped = shaped + 0.5 * np.asarray(lfilter(*_resonator(hz, damping), white, axis=0))
    return np.asarray(shaped / np.sqrt(0.25 + 0.25 * len(m.resonances)))


def _impulses(cycles: Floats, random: np.random.Generator, jitter: float) -> Floats:
    """Return 1 at the samples at which a ball meets the defect; the cage slips, so no two intervals are the same."""
    count = int(cycles[-1])
    at = np.searchsorted(cycles, np.arange(1, count + 1) + random.normal(0, jitter, count))
    hits = np.zeros(len(cycles))
    hits[np.clip(at, 0, len(cycles) - 1)] = random.uniform(0.7, 1.3, count)
    return hits


def _ring(m: Machine, hits: Floats) -> Floats:
    hz, damping = m.resonances[-1]
    _, poles = _resonator(hz, damping)
    ringing = np.asarray(lfilter([0, np.sin(2 * np.pi * hz / RATE_HZ)], poles, hits))
    return np.repeat(ringing[:, None], 3, axis=1)


def _resonator(hz: float, damping: float) -> tuple[list[float], list[float]]:
    """A two-pole filter with unit variance for white noise of unit variance."""
    radius = np.exp(-2 * np.pi * hz * damping / RATE_HZ)
    angle = 2 * np.pi * hz * np.sqrt(1 - damping**2) / RATE_HZ
    poles = [1.0, float(-2 * radius * np.cos(angle)), float(radius**2)]
    # Variance of an AR(2) process, Box and Jenkins 1970, 3.2.4.
    gain = (1 + poles[2]) / ((1 - poles[2]) * ((1 + poles[2]) ** 2 - poles[1] ** 2))
    return [float(1 / np.sqrt(gain))], poles
