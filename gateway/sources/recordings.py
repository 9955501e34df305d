"""Reading recorded samples: CSV and npz. Whole files become arrays; there is no Python object a sample."""

import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.config import ReplaySource
from gateway.errors import ConfigError, SourceLostError

TIME_COLUMNS = frozenset({"time", "timestamp", "datetime", "date", "t", "ts", "time_s", "epoch"})
_DELIMITERS = ",;\t"
_EPOCH_UNITS = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3))
"""Numbers above the first are epoch times in nano-, micro-, milliseconds; below all of them, seconds."""
_ZONE = re.compile(r"(Z|[+-]\d{2}:?\d{2})$")


@dataclass(frozen=True, slots=True)
class Recording:
    """Samples at an even rate."""

    samples: NDArray[Any]  # (n, channels), of any numeric type
    rate_hz: float
    window_samples: int | None = None  # the recording consists of windows of this length


def read_recording(name: str, settings: ReplaySource) -> Recording:
    """Read the file of a replay source.

    Raises:
        SourceLostError: the file is not there.
        ConfigError: it cannot be used; names the file, and the line of a CSV.
    """
    path = settings.file
    if not path.is_file():
        raise SourceLostError(f"source {name}: file {path} is not there; check `file` and the mount")
    try:
        match path.suffix.lower():
            case ".csv" | ".tsv" | ".txt":
                return _read_csv(path, settings)
            case ".npz" | ".npy":
                return _read_npz(path, settings)
            case other:
                raise ConfigError(f"{path}: cannot replay {other or 'files without an ending'}; give CSV, npz or video")
    except OSError as error:
        raise SourceLostError(f"source {name}: cannot read {path}: {error.strerror or error}") from error
    except ConfigError as error:
        raise ConfigError(f"source {name}: {error}") from error


# ---- CSV -----------------------------------------------------------------------------------------


def _read_csv(path: Path, settings: ReplaySource) -> Recording:
    header, first = _first_lines(path)
    delimiter = max(_DELIMITERS, key=header.count)
    names = [field.strip().strip('"') for field in header.split(delimiter)]
    time_at = next((at for at, field in enumerate(names) if field.lower() in TIME_COLUMNS), None)
    columns = _columns(path, settings, names, first.split(delimiter), time_at)
    try:
        samples = np.loadtxt(
            path, np.float32, delimiter=delimiter, skiprows=1, usecols=columns, ndmin=2, comments=None, encoding="utf-8"
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_bad_line(path, delimiter, columns)} ({error})") from error
    rate_hz = settings.rate_hz
    if rate_hz is None:
        if time_at is None:
            raise ConfigError(
                f"{path}: no column of times ({', '.join(sorted(TIME_COLUMNS))}) among {names}; set `rate_hz`"
            )
        rate_hz = _rate(path, delimiter, time_at)
    return Recording(samples, rate_hz)


def _first_lines(path: Path) -> tuple[str, str]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            header, first = lines.readline().rstrip("\r\n"), lines.readline().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error
    if not header or not first:
        raise ConfigError(f"{path} line {2 if header else 1}: empty; a header and lines of numbers belong here")
    if all(_is_number(field) for field in re.split(f"[{_DELIMITERS}]", header)):
        raise ConfigError(f"{path} line 1: numbers where the names of the columns belong; add a header")
    return header, first


def _columns(path: Path, settings: ReplaySource, names: list[str], first: list[str], time_at: int | None) -> list[int]:
    """Return the positions of the columns to read."""
    if settings.columns is not None:
        missing = [wanted for wanted in settings.columns if wanted not in names]
        if missing:
            raise ConfigError(f"{path} line 1: no column {', '.join(missing)}; there are {', '.join(names)}")
        return [names.index(wanted) for wanted in settings.columns]
    columns = [at for at, field in enumerate(first[: len(names)]) if at != time_at and _is_number(field)]
    if not columns:
        raise ConfigError(f"{path} line 2: no column of numbers among {', '.join(names)}")
    return columns


def _is_number(field: str) -> bool:
    try:
        float(field.strip().strip('"'))
    except ValueError:
        return False
    return True


def _bad_line(path: Path, delimiter: str, columns: list[int]) -> str:
    """Say which line is the first that is no good. Slow; only for files that could not be read."""
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.rstrip("\r\n").split(delimiter)
            if number == 1 or fields == [""]:
                continue
            if len(fields) <= max(columns):
                return f"{path} line {number}: {len(fields)} fields, but column {max(columns) + 1} is wanted"
            for at in columns:
                if not _is_number(fields[at]):
                    return f"{path} line {number}, column {at + 1}: {fields[at][:40]!r} is not a number"
    return f"{path}: cannot be read as CSV"


def _rate(path: Path, delimiter: str, time_at: int) -> float:
    """Return the samples a second: one over the median of the steps of time."""
    texts = np.loadtxt(
        path, "U40", delimiter=delimiter, skiprows=1, usecols=time_at, ndmin=1, comments=None, encoding="utf-8"
    )
    if len(texts) < 2:
        raise ConfigError(f"{path}: a single line has no rate; set `rate_hz`")
    seconds = _seconds(path, np.char.strip(texts, ' "'))
    step = float(np.median(np.diff(seconds)))
    if not np.isfinite(step) or step <= 0:
        raise ConfigError(f"{path}: the times in column {time_at + 1} do not advance; sort the file, or set `rate_hz`")
    return 1 / step


def _seconds(path: Path, texts: NDArray[np.str_]) -> NDArray[np.float64]:
    """Return times in seconds since the first, from ISO 8601 or epoch numbers."""
    elapsed: NDArray[np.float64]
    try:
        numbers = texts.astype(np.float64)
    except ValueError:
        # All times of a file are in one zone, and only their differences matter.
        zone = _ZONE.search(str(texts[0]))
        bare = np.char.replace(texts, zone.group(), "") if zone and ":" in str(texts[0]) else texts
        try:
            with warnings.catch_warnings(action="ignore"):  # a change of zone (summer time) in the middle of the file
                times = bare.astype("datetime64[ns]")
        except ValueError as error:
            raise ConfigError(f"{path}: the times are not numbers nor ISO 8601: {error}; set `rate_hz`") from error
        elapsed = (times - times[0]) / np.timedelta64(1, "s")
        return elapsed
    unit = next((unit for limit, unit in _EPOCH_UNITS if abs(numbers[0]) > limit), 1.0)
    elapsed = (numbers - numbers[0]) * unit
    return elapsed


# ---- npz -----------------------------------------------------------------------------------------


def _read_npz(path: Path, settings: ReplaySource) -> Recording:
    array = _load_array(path, settings)
    if settings.rate_hz is None:
        raise ConfigError(f"{path}: npz files do not tell their rate; set `rate_hz`")
    if not np.issubdtype(array.dtype, np.number) or np.issubdtype(array.dtype, np.complexfloating):
        raise ConfigError(f"{path}: holds {array.dtype}, not real numbers")
    match array.ndim:
        case 1:
            recording = Recording(array[:, None], settings.rate_hz)
        case 2:
            recording = Recording(array, settings.rate_hz)
        case 3:
            windows, n, channels = array.shape
            recording = Recording(array.reshape(windows * n, channels), settings.rate_hz, window_samples=n)
        case _:
            raise ConfigError(f"{path}: shape {array.shape}; (n, channels) or (windows, n, channels) can be replayed")
    if 0 in array.shape:
        raise ConfigError(f"{path}: the array is empty, shape {array.shape}")
    return recording


def _load_array(path: Path, settings: ReplaySource) -> NDArray[Any]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            wanted = settings.array or (loaded.files[0] if len(loaded.files) == 1 else None)
            if wanted is None or wanted not in loaded.files:
                raise ConfigError(f"{path}: set `array` to one of {', '.join(loaded.files)}")
            array: NDArray[Any] = loaded[wanted]
            return array
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: is no npz file: {error}") from error
