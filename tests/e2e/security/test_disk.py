"""Everything that the programs leave behind, searched for the weights of a model."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hil.loopback.tally import tally_of
from tests.e2e.flow import settle, waits
from tests.e2e.releases import LOUD, LOUD_WINDOW, loud
from tests.e2e.security.conftest import Secured
from tests.e2e.security.steps import enrolled, reboots, runs
from tests.gateway.inference.graphs import dense

_PIECE = 64


def model_with_canaries(folder: Path) -> bytes:
    """Write a release whose weights nobody else has; returns a piece of the file that is nothing but weights."""
    inputs = LOUD_WINDOW.samples * LOUD_WINDOW.channels
    noise = np.random.default_rng().normal(1.0, 0.05, (1, inputs))
    weights = (noise / inputs).astype(np.float32)
    shutil.rmtree(folder / LOUD)
    loud(folder, LOUD, dense(weights, np.zeros(1, np.float32)))
    return weights.tobytes()[1024 : 1024 + _PIECE]


def holders(folder: Path, canary: bytes) -> Iterator[Path]:
    """Yield the files that hold a piece of the weights."""
    for file in folder.rglob("*"):
        if file.is_file() and canary in file.read_bytes():
            yield file


def test_no_file_of_any_program_holds_a_piece_of_the_weights(secured: Secured, tmp_path: Path) -> None:
    rig = secured()
    canary = model_with_canaries(tmp_path / "models")
    enrolled(rig)
    runs(rig, "motor")
    waits(rig, tally_of(rig).enqueued + 20)
    rig.gateway.kill()  # also what a crash leaves behind
    rig.start_gateway()
    runs(rig, "motor")
    reboots(rig)
    runs(rig, "motor")
    assert list(holders(rig.directory, canary)) == []
    # The search finds them where they do lie in clear, and would find a copy that a program had made.
    assert [file.suffix for file in holders(tmp_path / "models", canary)] == [".tflite"]
    (rig.state_directory / "careless.tmp").write_bytes(b"some" + canary)
    assert [file.name for file in holders(rig.directory, canary)] == ["careless.tmp"]
    settle(rig)
