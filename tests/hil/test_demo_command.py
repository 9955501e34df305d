"""The command line of the demo: nothing is started by a question or a mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def demo(place: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it where there is nothing that it could run with."""
    return subprocess.run(
        [sys.executable, "-m", "hil.loopback.demo", *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_a_question_for_help_is_answered_and_starts_nothing(tmp_path: Path, word: str) -> None:
    done = demo(tmp_path, word)
    assert done.returncode == 0
    for name in ("--camera", "--speed", "--duration", "--dir", "DURATION"):
        assert name in done.stdout
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("words", [("--nonsense",), ("more",), ("--duration", "soon"), ("--speed", "-1")])
def test_what_it_does_not_know_is_an_error_of_usage(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = demo(tmp_path, *words)
    assert done.returncode == 2
    assert words[-1] in done.stderr
    assert "Traceback" not in done.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("name", "value"), [("DURATION", "0"), ("SPEED", "fast"), ("CAMERA", "3")])
def test_what_make_hands_on_is_checked_as_well(tmp_path: Path, name: str, value: str) -> None:
    done = demo(tmp_path, **{name: value})
    assert done.returncode == 2
    assert value in done.stderr
    assert name in done.stderr
