"""A small site on the loopback rig: one loud motor, and this machine, which is calm; each with a tiny model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hil.loopback.rig import Rig
from tests.e2e.releases import CALM, LOUD, write_releases

Site = Callable[..., Rig]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Make rigs whose processes are gone after the test, and whose logs are shown when it fails."""
    yield from sites(tmp_path)


def sites(folder: Path) -> Iterator[Site]:
    """Make rigs below a folder until the generator is closed. `models` of the folder is where they find releases."""
    rigs: list[Rig] = []
    models = write_releases(folder / "models")

    def make(**overrides: Any) -> Rig:
        sources, pipelines = parts(folder)
        sources.update(overrides.pop("sources", {}))
        pipelines.update(overrides.pop("pipelines", {}))
        gateway = {"models": {"directories": [str(models)]}, **overrides.pop("gateway", {})}
        rig = Rig(folder / f"rig-{len(rigs)}", sources, pipelines, gateway=gateway, **overrides)
        rigs.append(rig)
        return rig

    try:
        yield make
    finally:
        for rig in rigs:
            rig.kill()
            for child in (rig.gateway, rig.bridge, rig.broker):
                print(f"--- {child.name}\n{child.tail(15)}")


def parts(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Build sources and pipelines that tell something every second."""
    noise = np.random.default_rng(7)
    file = folder / "motors.npz"
    np.savez(file, loud=noise.normal(3.0, 1.0, (3200 * 4, 3)).astype(np.float32))
    sources: dict[str, Any] = {
        "loud": {"type": "replay", "file": str(file), "array": "loud", "rate_hz": 3200.0, "loop": True, "speed": 4.0},
        "machine": {"type": "health", "rate_hz": 20.0},
    }
    rule = {"name": "anomaly", "min_score": 0.5, "update_seconds": 0.2, "snapshot": True}
    interest = {"measure_every_seconds": 1.0}
    pipelines: dict[str, Any] = {
        "motor": {
            "source": "loud",
            "model": LOUD,
            "rules": [{**rule, "record_class": "critical"}],
            "interest": interest,
        },
        "machine": {"source": "machine", "model": CALM, "rules": [rule], "interest": interest},
    }
    return sources, pipelines
