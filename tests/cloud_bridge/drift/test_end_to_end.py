"""A sensor that changes: from its samples to a proposal to train again, and the same without the change."""

from collections.abc import Callable, Iterator

import pytest

from cloud_bridge.drift.baselines import SHIPPED
from cloud_bridge.drift.judging import Level
from cloud_bridge.store.base import Store
from gateway.inference.bundle import ReleaseStore
from gateway.inference.litert import LiteRtBackend
from gateway.inference.model import Model, open_model
from gateway.inference.plain import open_plain
from gateway.preprocess.preparation import preparation_for
from tests.cloud_bridge.drift.conftest import START_NS, Bench
from tests.simulators.measuring_device import Outlet, VibrationDevice

SHIPPED_NAME = "vibration-anomaly"
WINDOWS, APART = 240, 15.0  # an hour
SLICE_NS = 150 * 1_000_000_000


@pytest.fixture
def model() -> Iterator[Model]:
    found = ReleaseStore([SHIPPED]).find(SHIPPED_NAME)
    opened = open_model(found, found.manifest.artefacts[0], LiteRtBackend(), preparation_for, open_weights=open_plain)
    yield opened
    opened.close()


def hours(bench: Bench, device: VibrationDevice, outlet: Outlet, *gains: float) -> list[set[Level]]:
    """Let the device run an hour with each gain of its sensor, and look four times in it; return all levels."""
    seen = []
    watch = bench.watch()
    for gain in gains:
        device.gain = gain
        for _ in range(4):
            outlet.put(device.run(WINDOWS // 4, APART))
            bench.now_ns = device.now_ns
            watch.look()
            seen.append({one.standing.level for one in bench.findings().values()})
    return seen


@pytest.mark.parametrize("make_store", ["sqlite"], indirect=True)
@pytest.mark.timeout(120)
def test_a_sensor_that_works_loose_is_found_and_a_training_is_proposed(
    make_bench: Callable[..., Bench], store: Store, model: Model
) -> None:
    bench = make_bench()
    device = VibrationDevice(model, "gw", seed=1, start_ns=START_NS)
    levels = hours(bench, device, Outlet(store, "gw"), 1.0, 1.0, 0.6, 0.6)
    assert not any("alarm" in one for one in levels[:8]), "a healthy machine is no drift"
    assert "alarm" in levels[-1]
    found = bench.findings()["gw/motor", "rms", "shape"]
    assert found.standing.level == "alarm"
    assert found.comparison is not None
    assert found.comparison.psi > bench.settings.psi_alarm
    (proposal,) = bench.proposals()
    assert (proposal.model, proposal.version, proposal.state) == (SHIPPED_NAME, "1.0.0", "open")
    assert "gw/motor" in proposal.why
    assert {"alarm", "proposal"} <= {event.kind for event in bench.events()}


@pytest.mark.parametrize("make_store", ["sqlite"], indirect=True)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [2, 3])
def test_the_same_machine_without_the_change_is_never_told(
    make_bench: Callable[..., Bench], store: Store, model: Model, seed: int
) -> None:
    """The control of the test above."""
    bench = make_bench()
    device = VibrationDevice(model, "gw", seed=seed, start_ns=START_NS)
    levels = hours(bench, device, Outlet(store, "gw"), 1.0, 1.0, 1.0, 1.0)
    assert not any("alarm" in one for one in levels)
    assert bench.proposals() == []
