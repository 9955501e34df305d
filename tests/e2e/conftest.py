"""A small site on the loopback rig: one loud motor, one calm one, and this machine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hil.loopback.rig import Rig

Site = Callable[..., Rig]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Make rigs whose processes are gone after the test, and whose logs are shown when it fails."""
    rigs: list[Rig] = []

    def make(**overrides: Any) -> Rig:
        sources, pipelines = parts(tmp_path)
        sources.update(overrides.pop("sources", {}))
        pipelines.update(overrides.pop("pipelines", {}))
        rig = Rig(tmp_path / f"rig-{len(rigs)}", sources, pipelines, **overrides)
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.kill()
        for child in (rig.gateway, rig.bridge, rig.broker):
            print(f"--- {child.name}\n{child.tail(15)}")


def parts(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Build sources and pipelines that tell something every second."""
    noise = np.random.default_rng(7)
    file = folder / "motors.npz"
    np.savez(file, loud=noise.normal(0, 20.0, (3200 * 4, 3)).astype(np.float32))
    replay = {"type": "replay", "file": str(file), "rate_hz": 3200.0, "loop": True, "speed": 4.0}
    sources: dict[str, Any] = {
        "loud": {**replay, "array": "loud"},
        "machine": {"type": "health", "rate_hz": 20.0},
    }
    rule = {"name": "anomaly", "min_score": 0.5, "update_seconds": 0.2, "snapshot": True}
    interest = {"measure_every_seconds": 1.0}
    pipelines: dict[str, Any] = {
        "motor": {
            "source": "loud",
            "model": "vibration-anomaly",
            "rules": [{**rule, "record_class": "critical"}],
            "interest": interest,
        },
        "machine": {"source": "machine", "model": "process-anomaly", "rules": [rule], "interest": interest},
    }
    return sources, pipelines
