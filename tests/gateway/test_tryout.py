"""A recording is played through one pipeline: its rules see the recording's time, and nobody else hears of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from gateway import tryout
from gateway.config import Config
from gateway.configload import load, read
from gateway.errors import ConfigError, ModelError
from gateway.tryout import Outcome, Told, try_out
from tests.e2e.releases import BRIGHT, LOUD, LOUD_WINDOW, write_releases

BEGAN_NS = 1_790_000_000_000_000_000
QUIET, NOISY = 0.0, 3.0


def write_config(folder: Path, **parts: Any) -> Path:
    rule = {"name": "it", "min_score": 0.5, "hold_seconds": 1.0, "gone_seconds": 2.0, "update_seconds": 60}
    document = {
        "gateway": {"id": "gw-1", "state_directory": str(folder / "state"), "time_zone": "UTC"},
        "vault": {"level": "tpm", "policy_key_file": str(folder / "nowhere.pem")},
        "cloud": {
            "brokers": [{"url": "mqtt://127.0.0.1:1", "password_file": str(folder / "nowhere"), "username": "me"}]
        },
        "models": {"directories": [str(write_releases(folder / "models"))]},
        "sources": {
            "motor": {"type": "iio", "device": "adxl345", "channels": ["x", "y", "z"], "rate_hz": 3200.0},
            "yard": {"type": "camera", "device": "rtsp://127.0.0.1:1/stream"},
            "slow": {"type": "camera", "device": "rtsp://127.0.0.1:1/stream", "fps": 2.0},
        },
        "pipelines": {
            "motor": {"source": "motor", "model": LOUD, "rules": [rule]},
            "yard": {"source": "yard", "model": BRIGHT, "rules": [{**rule, "snapshot": True}]},
            "slow": {"source": "slow", "model": BRIGHT, "rules": [rule]},
            "night": {
                "source": "motor",
                "model": LOUD,
                "rules": [{**rule, "active": [{"start": "22:00", "end": "06:00"}]}],
            },
        },
        **parts,
    }
    file = folder / "gateway.yaml"
    file.write_text(json.dumps(document))
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.fixture
def config(file: Path) -> Config:
    found = read(file, require_files=False).config
    assert found is not None
    return found


@pytest.fixture
def shaking(tmp_path: Path) -> Path:
    """Three seconds of nothing, five that shake, seven of nothing."""
    rate = int(LOUD_WINDOW.rate_hz)
    parts = [np.full((rate * seconds, 3), level) for seconds, level in ((3, QUIET), (5, NOISY), (7, QUIET))]
    recording = tmp_path / "shaking.npz"
    np.savez(recording, samples=np.concatenate(parts).astype(np.float32))
    return recording


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Two dark seconds, three bright ones, five dark ones, ten pictures a second."""
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for level in [0] * 20 + [250] * 30 + [0] * 50:
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    return video


def tried(config: Config, pipeline: str, recording: Path, **options: Any) -> tuple[list[Told], Outcome]:
    told: list[Told] = []
    outcome = try_out(config, pipeline, recording, told.append, **{"began_ns": BEGAN_NS, **options})
    return told, outcome


def test_rules_see_the_time_of_the_recording_however_fast_it_is_played(config: Config, shaking: Path) -> None:
    (new, end), outcome = tried(config, "motor", shaking)
    assert (new.event.phase, end.event.phase) == ("new", "end")
    assert new.offset_seconds == pytest.approx(3 + 1, abs=0.3)  # from when it shakes, held for a second
    assert end.offset_seconds == pytest.approx(8 + 2, abs=0.3)  # until it has been gone for two
    assert (outcome.events, outcome.recorded_seconds, outcome.dropped) == (1, 15.0, {})
    assert outcome.samples == 15 * 4  # a window each quarter of a second, none left out


def test_control_by_the_clock_on_the_wall_nothing_lasts_long_enough(
    config: Config, shaking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tryout._Played, "_on_recorded_time", lambda played: played._source.captures())
    told, outcome = tried(config, "motor", shaking)
    assert told == []
    assert outcome.samples == 15 * 4


def test_a_clip_is_played_at_its_own_rate(config: Config, clip: Path) -> None:
    (new, end), outcome = tried(config, "yard", clip)
    assert new.offset_seconds == pytest.approx(3.0, abs=0.2)
    assert end.offset_seconds == pytest.approx(7.0, abs=0.3)
    assert (outcome.samples, outcome.pictures) == (100, 1)
    assert outcome.recorded_seconds == pytest.approx(9.9)


def test_a_camera_that_gives_fewer_pictures_is_tried_with_as_few(config: Config, clip: Path) -> None:
    (new, _), outcome = tried(config, "slow", clip)
    assert outcome.samples == 20
    assert new.offset_seconds == pytest.approx(3.0, abs=0.5)


@pytest.mark.parametrize(("began", "events"), [("2026-01-01T23:00:00", 1), ("2026-01-01T12:00:00", 0)])
def test_times_of_day_are_those_at_which_the_recording_is_to_have_begun(
    config: Config, shaking: Path, began: str, events: int
) -> None:
    began_ns = int(np.datetime64(began).astype("datetime64[ns]").astype(np.int64))
    _, outcome = tried(config, "night", shaking, began_ns=began_ns)
    assert outcome.events == events


def test_a_csv_without_times_is_played_at_the_rate_of_the_source_or_as_told(config: Config, tmp_path: Path) -> None:
    recording = tmp_path / "values.csv"
    recording.write_text("x,y,z\n" + "3,3,3\n" * 6400)
    _, outcome = tried(config, "motor", recording)
    assert outcome.recorded_seconds == 2.0
    _, outcome = tried(config, "motor", recording, rate_hz=1600.0)
    assert outcome.recorded_seconds == 4.0


@pytest.mark.parametrize(
    ("pipeline", "content", "words"),
    [
        ("nothing", b"", "there is motor, yard"),
        ("motor", None, "is not there"),
        ("motor", b"no video", "no video that can be decoded"),
    ],
)
def test_what_cannot_be_played_is_told(
    config: Config, tmp_path: Path, pipeline: str, content: bytes | None, words: str
) -> None:
    recording = tmp_path / "recording.mp4"
    if content is not None:
        recording.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        tried(config, pipeline, recording)


def test_pictures_for_a_model_of_samples_are_refused(config: Config, clip: Path) -> None:
    with pytest.raises(ConfigError, match=r"gives pictures, but model .* wants samples"):
        tried(config, "motor", clip)


def test_a_model_that_is_damaged_or_sealed_is_told(config: Config, shaking: Path, tmp_path: Path) -> None:
    next((tmp_path / "models" / LOUD).rglob("*.tflite")).unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        tried(config, "motor", shaking)


def test_it_touches_nothing_but_what_it_reads(file: Path, shaking: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    command = [sys.executable, "-m", "gateway", "try", str(shaking), "--pipeline", "motor", "--config", str(file)]
    bare = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    shown = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=True, env=bare)
    *events, last = [json.loads(line) for line in shown.stdout.split("\n") if line]
    assert [one["event"]["type"] for one in events] == ["new", "end"]
    assert last["summary"]["events"] == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=bare)
    assert "0:04" in lines.stdout
    assert "1 event in 15 s" in lines.stderr
    with pytest.raises(ConfigError):  # as it stands, without the files it names, it could not even be run
        load(file)


def test_a_configuration_with_mistakes_is_refused_with_their_places(tmp_path: Path, shaking: Path) -> None:
    file = write_config(tmp_path, surprise=1)
    command = [sys.executable, "-m", "gateway", "try", str(shaking), "--pipeline", "motor", "--config", str(file)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 4
    assert "surprise" in shown.stderr
