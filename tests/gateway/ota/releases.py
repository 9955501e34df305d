"""Releases for updates: a picture or a window in, one score out, with golden inputs that were really computed."""

from pathlib import Path

import numpy as np

from gateway.wire.manifest import Baseline, ImageInput, Output, Plain, Regression, Target, WindowInput
from tests.gateway.inference.graphs import dense
from tests.gateway.inference.manifests import write_release

WINDOW = WindowInput(samples=4, hop_samples=4, channels=1, rate_hz=100.0, features=Plain())
ANOMALY = Regression(threshold=1.0)
NAME = "probe"


def scorer(factor: float, inputs: int = 4) -> bytes:
    """Return a model that answers `factor` times the mean of its inputs."""
    return dense(np.full((1, inputs), factor / inputs, np.float32), np.zeros(1, np.float32))


def release(
    directory: Path,
    version: str,
    content: bytes,
    *,
    golden: tuple[float, float] | None = (1.0, 1.0),
    spec: WindowInput | ImageInput = WINDOW,
    output: Output = ANOMALY,
    name: str = NAME,
    baseline: Baseline | None = None,
) -> Path:
    """Write a release; `golden` is the value that all inputs have, and the answer that is expected to it."""
    goldens: tuple[tuple[Target, bytes, bytes, float], ...] = ()
    if golden is not None:
        inputs = spec.samples * spec.channels if isinstance(spec, WindowInput) else 0
        given = np.full((1, inputs), golden[0], "<f4").tobytes()
        goldens = (("cpu-float", given, np.full((1, 1), golden[1], "<f4").tobytes(), 1e-3),)
    return write_release(
        directory,
        {"cpu-float": content},
        spec,
        output,
        name=name,
        version=version,
        golden=goldens,
        baseline=baseline,
    )
