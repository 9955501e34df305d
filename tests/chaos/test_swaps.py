"""Many swaps under a live stream: no frame is lost, none is answered twice. The long form does a thousand.

The aim is that a swap adds at most 10 ms to the time between two answers, 99 times of 100; no single one may add more
than 100 ms, three windows at this pace. Of 25 swaps no such share can be told, and the short form shares its two cores
with other experiments: it tells the figures, and holds a looser bound.
"""

import threading
import time
from typing import Any

import msgspec
import pytest

from gateway.inference.model import Model
from gateway.values import Inference, Sample
from tests.bench.swap import GAP_MAX_MS, GAP_P99_MS, swap_many
from tests.chaos.experiment import Experiment
from tests.gateway.ota.rig import Device

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

STALL_SECONDS = 0.4
SHARED_MACHINE_MAX_MS = 250.0
"""Bound of the short form: well below a stall, and above what two busy cores do to any thread."""


def test_swaps_lose_no_frame_and_add_no_time(experiment: Experiment) -> None:
    figures = swap_many(experiment.scaled(25, 1000), experiment.directory)
    experiment.log("swapped", **figures)
    gap, other = figures["gap_ms"], figures["others_ms"]
    print(  # pytest shows it with -rP, and in the report of a run that failed
        f"{figures['swaps']} swaps, {figures['windows']} windows at {figures['fps']:g}/s: {figures['lost']} lost, "
        f"beyond the period p50 {gap['p50']} p95 {gap['p95']} p99 {gap['p99']} max {gap['max']} ms; "
        f"without a swap p50 {other['p50']} p95 {other['p95']} p99 {other['p99']} max {other['max']} ms"
    )
    assert figures["gaps_seen"] == figures["swaps"]
    assert other["count"] >= figures["windows"] - figures["swaps"] - 2  # the last answer may not be noted yet
    check(figures, GAP_MAX_MS if experiment.long else SHARED_MACHINE_MAX_MS)
    if experiment.long:
        assert gap["p99"] <= GAP_P99_MS, f"gaps are too long: {gap}"


def check(figures: dict[str, Any], longest_ms: float = SHARED_MACHINE_MAX_MS) -> None:
    assert figures["lost"] == 0, f"{figures['lost']} windows were lost"
    assert figures["answered_twice"] == 0
    assert figures["gap_ms"]["max"] <= longest_ms, f"one gap is too long: {figures['gap_ms']}"


def by_a_restart(device: Device, model: Model) -> None:
    """End the pipeline, and begin it anew with the other release: what many do, and what the swap is there to avoid."""
    model.close()
    name = f"{model.ref.name}@{model.ref.version}"
    device.bay.settings = device.settings = msgspec.structs.replace(device.settings, model=name)
    device.stop()
    time.sleep(STALL_SECONDS)  # as long as a process takes at least to load its libraries
    device.restart()


def warmed_up_in_the_pipelines_thread(device: Device, model: Model) -> None:
    """Hold up the thread that answers while the new model becomes warm."""
    answered, held = device.record.answered, threading.Event()

    def slow(sample: Sample, inference: Inference, seconds: float, busy_seconds: float) -> None:
        device.record.answered = answered  # type: ignore[method-assign]
        answered(sample, inference, seconds, busy_seconds)
        held.set()
        time.sleep(STALL_SECONDS)

    device.record.answered = slow  # type: ignore[method-assign]
    assert held.wait(10)
    device.bay.exchange(model, keep_old=False)


def test_swaps_control_a_restart_loses_frames(experiment: Experiment) -> None:
    figures = swap_many(2, experiment.directory, exchange=by_a_restart)
    experiment.log("swapped", **figures)
    with pytest.raises(AssertionError, match="windows were lost"):
        check(figures)


def test_swaps_control_a_model_that_becomes_warm_in_the_pipeline_is_over_the_bound(experiment: Experiment) -> None:
    figures = swap_many(2, experiment.directory, exchange=warmed_up_in_the_pipelines_thread)
    experiment.log("swapped", **figures)
    assert figures["gaps_seen"] == 2
    with pytest.raises(AssertionError, match="gap is too long"):
        check(figures)
