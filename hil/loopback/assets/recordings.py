"""Two recordings with faults at known times: a vibrating machine and a heating loop. Made, not fetched.

Beside each lies `<name>.labels.json` with its anomalies as sample intervals, the end excluded. The heating loop is
a simulation of its own, not one of the generators that the packaged models learn from.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud_bridge.training.synth.machine import FAULTS, RATE_HZ, Fault, build_machine
from cloud_bridge.training.synth.machine import run as run_machine
from hil.loopback.assets.obtaining import Say, digest_of, put_in_place, working_directory, write_json

Floats = NDArray[np.float64]

VIBRATION_SECONDS: Final = 120
_VIBRATION_SEED: Final = 7_319_946_021  # training draws its machines from small seeds
_FAULTY: Final[tuple[tuple[Fault, int, int, float], ...]] = (  # fault, first second, last second excluded, severity
    ("imbalance", 22, 28, 0.9),
    ("outer-race", 48, 55, 0.9),
    ("looseness", 76, 81, 0.9),
    ("rub", 103, 110, 0.9),
)

PROCESS_ROWS: Final = 6048  # three weeks
_PROCESS_SEED: Final = 5_870_113_377
_ROW_SECONDS: Final = 300
_ROWS_A_DAY: Final = 288
_SENSOR_STEP: Final = 0.0625  # °C, as a DS18B20


@dataclass(frozen=True, slots=True)
class Episode:
    """Something wrong from one sample on, up to another one, excluded."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Recording:
    """A file to replay and what is wrong in it."""

    content: bytes
    rate_hz: float  # of the recording; the demo may replay it faster
    episodes: tuple[Episode, ...]


_EPISODES: Final = (
    Episode("spike", 1180, 1182),
    Episode("level-shift", 1900, 1990),
    Episode("stuck", 2700, 2840),
    Episode("drift", 3500, 3650),
    Episode("spike", 4400, 4403),
    Episode("level-shift", 5200, 5280),
)


def vibration() -> Recording:
    """Two minutes of a machine at 3,200 Hz, three axes, in g, with four faults that come and go."""
    random = np.random.default_rng(_VIBRATION_SEED)
    severity = np.zeros((VIBRATION_SECONDS, len(FAULTS)))
    for fault, start, end, strength in _FAULTY:
        severity[start:end, FAULTS.index(fault)] = strength
    samples = run_machine(build_machine(random), VIBRATION_SECONDS, random, severity)
    content = io.BytesIO()
    np.savez_compressed(content, samples=samples.astype(np.float32))
    episodes = tuple(Episode(fault, int(start * RATE_HZ), int(end * RATE_HZ)) for fault, start, end, _ in _FAULTY)
    return Recording(content.getvalue(), RATE_HZ, episodes)


def process() -> Recording:
    """Three weeks of a heating loop's flow temperature in °C, a row every five minutes."""
    random = np.random.default_rng(_PROCESS_SEED)
    values = heating_loop(PROCESS_ROWS, random)
    for episode in _EPISODES:
        _break(values, episode)
    values = np.round(values / _SENSOR_STEP) * _SENSOR_STEP
    began = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
    rows = (
        f"{(began + timedelta(seconds=_ROW_SECONDS * row)).strftime('%Y-%m-%dT%H:%M:%SZ')},{value:.4f}\n"
        for row, value in enumerate(values.tolist())
    )
    return Recording(("time,temperature\n" + "".join(rows)).encode(), 1 / _ROW_SECONDS, _EPISODES)


def heating_loop(rows: int, random: np.random.Generator) -> Floats:
    """Return the flow temperature of a loop that follows the weather, rests at night and heats up in the morning.

    The set point falls by 0.8 °C for each °C outside (EN 12831's usual curve for radiators), a burner keeps it within
    its band, and the loop answers with a lag of about half an hour.
    """
    hours = np.arange(rows) * 24 / _ROWS_A_DAY
    days = np.cumsum(random.normal(0, 0.02, rows))  # the weather changes over days
    outside = 3 + 3.5 * np.sin(2 * np.pi * (hours - 9) / 24) + days - days.mean()
    night = ((hours % 24) < 5.5) | ((hours % 24) >= 22)
    set_point = 52 - 0.8 * outside - np.where(night, 3.0, 0.0)
    values = np.empty(rows)
    at = set_point[0]
    for row in range(rows):
        at += (set_point[row] - at) / 6.5 + random.normal(0, 0.12)
        values[row] = at
    burner = 0.35 * np.sin(2 * np.pi * np.cumsum(random.normal(1, 0.06, rows)) / 7)
    return values + burner + random.normal(0, 0.08, rows)


def _break(values: Floats, episode: Episode) -> None:
    """Put one thing that goes wrong into a series, in place."""
    part = values[episode.start : episode.end]
    match episode.kind:
        case "spike":  # a bad reading, as from a loose contact
            part += 24.0 if episode.start < len(values) / 2 else -30.0
        case "level-shift":  # the pump fails, or a valve stays open
            part += -14.0 if episode.start < len(values) / 2 else 11.0
        case "stuck":  # the sensor repeats its last value
            part[:] = part[0]
        case "drift":  # the sensor comes loose from its pipe
            part -= np.linspace(0, 17, len(part))


MAKERS: Final[dict[str, Callable[[], Recording]]] = {"vibration.npz": vibration, "process.csv": process}


def recording_is_there(data: Path, name: str) -> bool:
    """Tell whether a recording lies there as this program writes it, with its labels."""
    try:
        labels = json.loads(_labels_path(data, name).read_bytes())
    except (OSError, ValueError):
        return False
    return (
        isinstance(labels, dict)
        and labels.get("recipe") == recipe_digest()
        and labels.get("sha256") == digest_of(data / name)
    )


def make_recordings(data: Path, say: Say) -> list[Path]:
    """Make what is missing; return the files that were made."""
    made = []
    for name, maker in MAKERS.items():
        if recording_is_there(data, name):
            continue
        recording = maker()
        with working_directory(data) as work:
            (work / name).write_bytes(recording.content)
            put_in_place(work / name, data / name)
            write_json(work / "labels", _labels(name, recording))
            put_in_place(work / "labels", _labels_path(data, name))
        say(f"    {name}: {len(recording.content) / 1e6:.1f} MB, {len(recording.episodes)} episodes")
        made.append(data / name)
    return made


def recipe_digest() -> str:
    """Return what tells this version of the recordings from others."""
    recipe = (_VIBRATION_SEED, VIBRATION_SECONDS, _FAULTY, _PROCESS_SEED, PROCESS_ROWS, _EPISODES)
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]


def _labels_path(data: Path, name: str) -> Path:
    return data / f"{Path(name).stem}.labels.json"


def _labels(name: str, recording: Recording) -> dict[str, Any]:
    return {
        "file": name,
        "sha256": hashlib.sha256(recording.content).hexdigest(),
        "recipe": recipe_digest(),
        "rate_hz": recording.rate_hz,
        "anomalies": [
            {
                "kind": episode.kind,
                "start": episode.start,
                "end": episode.end,
                "start_seconds": round(episode.start / recording.rate_hz, 3),
                "end_seconds": round(episode.end / recording.rate_hz, 3),
            }
            for episode in recording.episodes
        ],
    }
