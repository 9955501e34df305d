from pathlib import Path

import numpy as np
import pytest

from gateway.config import ReplaySource
from gateway.errors import ConfigError, SourceLostError
from gateway.sources.recordings import Recording, read_recording


def read(path: Path, text: str, *, name: str = "data.csv", **settings: object) -> Recording:
    file = path / name
    file.write_text(text)
    return read_recording("press", ReplaySource(file=file, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("times", "rate_hz"),
    [
        (["0", "0.01", "0.02"], 100),
        (["1700000000", "1700000001", "1700000002"], 1),
        (["1700000000000", "1700000000500", "1700000001000"], 2),
        (["1700000000000000000", "1700000000250000000", "1700000000500000000"], 4),
        (["2026-03-01T12:00:00Z", "2026-03-01T12:00:05Z", "2026-03-01T12:00:10Z"], 0.2),
        (["2026-03-01 12:00:00.000+02:00", "2026-03-01 12:00:00.100+02:00", "2026-03-01 12:00:00.200+02:00"], 10),
        (["2026-03-01", "2026-03-02", "2026-03-03"], 1 / 86400),
        (['"2026-03-01T12:00:00"', '"2026-03-01T12:01:00"', '"2026-03-01T12:02:00"'], 1 / 60),
    ],
)
def test_the_rate_is_read_from_times_in_every_usual_form(tmp_path: Path, times: list[str], rate_hz: float) -> None:
    text = "timestamp,value\n" + "".join(f"{time},{at}\n" for at, time in enumerate(times))
    recording = read(tmp_path, text)
    assert recording.rate_hz == pytest.approx(rate_hz)
    assert recording.samples.tolist() == [[0], [1], [2]]


def test_a_configured_rate_wins_and_columns_of_words_are_left_out(tmp_path: Path) -> None:
    recording = read(tmp_path, "time;label;x;y\n0;calm;1;2\n1;shake;3;4\n", rate_hz=50)
    assert recording.rate_hz == 50
    assert recording.samples.dtype == np.float32
    assert recording.samples.tolist() == [[1, 2], [3, 4]]


def test_chosen_columns_come_in_the_chosen_order(tmp_path: Path) -> None:
    recording = read(tmp_path, "\ufeffx\ty\tz\n1\t2\t3\n", name="data.tsv", rate_hz=1, columns=["z", "x"])
    assert recording.samples.tolist() == [[3, 1]]


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("time,x\n0,1\n1,oops\n", {}, r"data\.csv line 3, column 2: 'oops' is not a number"),
        ("x,y\n1,2\n3\n", {"rate_hz": 1}, r"data\.csv line 3: 1 fields, but column 2 is wanted"),
        ("x,y\n1,2\n3,\n", {"rate_hz": 1}, r"data\.csv line 3, column 2: '' is not a number"),
        ("x\n1\n2\n", {}, r"data\.csv: no column of times .*set `rate_hz`"),
        ("x\n1\n", {"rate_hz": 1, "columns": ["y"]}, r"data\.csv line 1: no column y; there are x"),
        ("x\n", {"rate_hz": 1}, r"data\.csv line 2: empty"),
        ("", {"rate_hz": 1}, r"data\.csv line 1: empty"),
        ("1,2\n3,4\n", {"rate_hz": 1}, r"data\.csv line 1: numbers where the names"),
        ("x\ncalm\n", {"rate_hz": 1}, r"data\.csv line 2: no column of numbers"),
        ("time,x\n5,1\n5,2\n5,3\n", {}, r"times in column 1 do not advance"),
        ("time,x\nnoon,1\nlater,2\n", {}, r"times are not numbers nor ISO 8601"),
        ("time,x\n0,1\n", {}, r"a single line has no rate"),
    ],
)
def test_a_bad_csv_names_the_file_the_line_and_the_remedy(
    tmp_path: Path, text: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"source press: .*{message}"):
        read(tmp_path, text, **settings)  # type: ignore[arg-type]


def test_a_csv_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_bytes(b"\xff\xfe\x00x\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_recording("press", ReplaySource(file=file, rate_hz=1))


@pytest.mark.parametrize(
    ("shape", "window", "read_shape"),
    [((10,), None, (10, 1)), ((10, 3), None, (10, 3)), ((4, 10, 3), 10, (40, 3))],
)
def test_arrays_of_samples_and_of_windows_are_read(
    tmp_path: Path, shape: tuple[int, ...], window: int | None, read_shape: tuple[int, int]
) -> None:
    file = tmp_path / "data.npz"
    np.savez(file, other=np.zeros(1), wanted=np.zeros(shape, np.int16))
    recording = read_recording("press", ReplaySource(file=file, rate_hz=10, array="wanted"))
    assert recording.samples.shape == read_shape
    assert recording.window_samples == window


@pytest.mark.parametrize(
    ("array", "settings", "message"),
    [
        (np.zeros((2, 2, 2, 2)), {"rate_hz": 1}, r"shape \(2, 2, 2, 2\)"),
        (np.zeros((0, 3)), {"rate_hz": 1}, r"is empty"),
        (np.zeros((2, 3)), {}, r"set `rate_hz`"),
        (np.zeros((2, 3)), {"rate_hz": 1, "array": "b"}, r"set `array` to one of a"),
        (np.array(["x", "y"]), {"rate_hz": 1}, r"not real numbers"),
        (np.array([{}]), {"rate_hz": 1}, r"is no npz file.*allow_pickle"),
    ],
)
def test_a_bad_array_names_the_file_and_the_remedy(
    tmp_path: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.float64]], settings: dict[str, object], message: str
) -> None:
    file = tmp_path / "data.npz"
    np.savez(file, a=array)
    with pytest.raises(ConfigError, match=rf"data\.npz.*{message}"):
        read_recording("press", ReplaySource(file=file, **settings))  # type: ignore[arg-type]


def test_a_file_that_is_no_archive_and_one_that_is_not_there_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    file.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ConfigError, match="is no npz file"):
        read_recording("press", ReplaySource(file=file, rate_hz=1))
    file.unlink()
    with pytest.raises(SourceLostError, match=r"data\.npz is not there; check"):
        read_recording("press", ReplaySource(file=file, rate_hz=1))


def test_a_long_recording_becomes_one_array(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    rows = np.arange(100_000)
    np.savetxt(file, np.column_stack([rows / 1000, rows, -rows]), "%.3f", ",", header="t,x,y", comments="")
    recording = read_recording("press", ReplaySource(file=file))
    assert recording.samples.shape == (100_000, 2)
    assert recording.rate_hz == pytest.approx(1000)
