"""A model that answers its input, so that every sample makes one record, and the record says which sample it was.

It puts the whole way of a pipeline (source, window, interpreter, rules, outbox) behind each record, where a model that
judges would make a record of few samples only.
"""

from pathlib import Path
from typing import Any

import numpy as np

from gateway.wire.manifest import Plain, Regression, WindowInput
from tests.e2e.releases import mean
from tests.gateway.inference.manifests import write_release

NAME = "echo"
HIGHEST = 2**24
"""Up to here a float32 holds every number."""


def write_echo(directory: Path) -> Path:
    """Write the release; returns the directory for `models.directories`."""
    one = WindowInput(samples=1, hop_samples=1, channels=1, rate_hz=1.0, features=Plain())
    write_release(directory, {"cpu-float": mean(1)}, one, Regression(threshold=1.0), name=NAME)
    return directory


def echo_pipeline(source: str, record_class: str = "event") -> dict[str, Any]:
    """Make a pipeline that tells every sample from 1 up: the first as a new event, the others as its updates."""
    rule = {
        "name": "every",
        "min_score": 0.5,
        "update_seconds": 1e-9,
        "gone_seconds": 1e6,
        "record_class": record_class,
    }
    return {"source": source, "model": NAME, "rules": [rule], "interest": {"low_confidence": None}}


def ticking(directory: Path, rate_hz: float) -> dict[str, Any]:
    """Make a source of so many samples a second, for ever; each is handed over when it is due."""
    file = directory / f"ticks-{rate_hz:g}.npz"
    np.savez(file, samples=np.full((max(1, int(rate_hz)), 1), 2.0, np.float32))
    return {"type": "replay", "file": str(file), "rate_hz": rate_hz, "loop": True, "block_samples": 1}
