"""Swaps under a live stream: between two samples, also where the new release wants other windows."""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from gateway.decide.measures import MeasureAggregator
from gateway.errors import InferenceError, PipelineBusyError
from gateway.inference.model import Model
from gateway.values import Entry, Receipt
from gateway.wire.manifest import Plain, WindowInput
from tests.gateway.inference.graphs import dense
from tests.gateway.ota.releases import release, scorer
from tests.gateway.ota.rig import Device
from tests.simulators.release_repository import ReleaseRepository
from tests.simulators.waiting import wait_for

EIGHT = WindowInput(samples=8, hop_samples=8, rate_hz=100.0, features=Plain())
TWO_CHANNELS = WindowInput(samples=4, hop_samples=4, channels=2, rate_hz=100.0, features=Plain())


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "device", ReleaseRepository(tmp_path / "repository"), model="probe@1.0.0")
    release(made.releases, "1.0.0", scorer(1.0))
    yield made
    made.stop()


def answered(device: Device, version: str) -> None:
    wait_for(lambda: device.record.versions[-1] == version, seconds=20)


def test_swaps_lose_no_window_and_answer_none_twice(device: Device) -> None:
    release(device.releases, "2.0.0", scorer(1.0))
    device.start()
    for number in range(10):
        device.bay.exchange(device.load(f"probe@{2 - number % 2}.0.0"), keep_old=False)
        wait_for(lambda number=number: len(device.record.gaps) > number, seconds=10)  # type: ignore[misc]
    sequences = device.record.sequences
    assert sequences == [*range(1, len(sequences) + 1)]
    assert device.pipeline.dropped() == {}


def test_a_release_that_wants_other_windows_takes_over_without_a_restart(device: Device) -> None:
    content = dense(np.full((1, 8), 1 / 8, np.float32), np.zeros(1, np.float32))
    release(device.releases, "2.0.0", content, golden=None, spec=EIGHT)
    device.start()
    device.bay.exchange(device.load("probe@2.0.0"), keep_old=False)
    answered(device, "2.0.0")
    versions = device.record.versions
    first = versions.index("2.0.0")
    assert set(versions[:first]) == {"1.0.0"}, "windows that were cut already are answered by the old release"
    assert device.pipeline.dropped() == {}
    device.bay.exchange(device.load("probe@1.0.0"), keep_old=False)
    answered(device, "1.0.0")


class Outbox:
    """Takes nothing until its disk is back."""

    def __init__(self) -> None:
        self.asked, self.back = threading.Event(), threading.Event()

    def submit(self, _entries: Sequence[Entry], done: Callable[[Sequence[Receipt]], None]) -> None:
        self.asked.set()
        assert self.back.wait(60)
        done([])


def waiting_for(outbox: Outbox, device: Device) -> None:
    """Start a device whose pipeline tells its first sums, and waits for the outbox with that."""
    content = dense(np.full((1, 8), 1 / 8, np.float32), np.zeros(1, np.float32))
    release(device.releases, "2.0.0", content, golden=None, spec=EIGHT)
    device.pipeline._around = dataclasses.replace(device.pipeline._around, submit=outbox.submit)
    device.pipeline._sums = MeasureAggregator("gw", "motor", 0.01)
    device.start()
    assert outbox.asked.wait(20)


def test_a_pipeline_that_waits_for_the_outbox_says_so_in_time_and_is_not_given_up(device: Device) -> None:
    outbox = Outbox()
    waiting_for(outbox, device)
    with pytest.raises(PipelineBusyError, match="waits for the outbox"):
        device.pipeline.swap(device.load("probe@2.0.0"), 0.5)
    assert device.serving == "1.0.0"
    assert not device.left.is_set()
    outbox.back.set()
    device.bay.exchange(device.load("probe@2.0.0"), keep_old=False)
    answered(device, "2.0.0")
    assert device.pipeline.dropped() == {}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # the first run says that it was left
def test_a_run_that_was_left_while_it_waited_for_the_outbox_ends_nothing_of_the_next_one(device: Device) -> None:
    outbox = Outbox()
    waiting_for(outbox, device)
    device.pipeline.abandon("its accelerator went away")
    assert device.left.is_set()
    assert device.pipeline.model is None, "its thread is still there, and answers nothing any more"
    with pytest.raises(InferenceError, match="does not run"):
        device.pipeline.swap(device.load("probe@1.0.0"), 0.5)
    device.pipeline._around = dataclasses.replace(device.pipeline._around, submit=lambda _entries, done: done([]))
    device.rerun()
    wait_for(lambda: device.pipeline.model is not None, seconds=20)
    outbox.back.set()
    first, *_ = device._threads
    first.join(20)
    assert not first.is_alive()
    before = len(device.record.versions)
    wait_for(lambda: len(device.record.versions) > before + 20, seconds=20, what="answers of the second run")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # a run that was left says so
@pytest.mark.parametrize("error", [PipelineBusyError("waits for the outbox"), InferenceError("hangs")])
def test_a_pipeline_that_is_only_busy_keeps_its_run_and_is_asked_again_after_a_pause(
    device: Device, monkeypatch: pytest.MonkeyPatch, error: InferenceError
) -> None:
    release(device.releases, "2.0.0", scorer(1.0))
    device.start()
    tries: list[Model] = []

    def exchange(model: Model, *, keep_old: bool) -> None:
        tries.append(model)
        assert not keep_old
        model.close()
        raise error

    serving = device.agent._serving
    monkeypatch.setattr(device.bay, "exchange", exchange)
    monkeypatch.setattr(serving, "label", lambda _: "probe@2.0.0")
    with capture_logs() as logs:
        serving.serve("motor", device.bay)
        serving.serve("motor", device.bay)
    if isinstance(error, PipelineBusyError):
        assert not device.left.is_set()
        assert len(tries) == 1
        assert [line["event"] for line in logs if line["event"].startswith("model_swap")] == ["model_swap_waits"]
    else:
        assert device.left.is_set(), "the control: one that hangs is given up"


def test_a_bay_that_is_being_exchanged_holds_up_no_other_judgement(device: Device) -> None:
    held = threading.Thread(target=device.agent._serving.judge, args=("motor",))
    with device.bay.lock:
        held.start()
        held.join(20)
        assert not held.is_alive()


def test_one_for_another_source_is_not_taken(device: Device) -> None:
    content = dense(np.full((1, 8), 1 / 8, np.float32), np.zeros(1, np.float32))
    release(device.releases, "2.0.0", content, golden=None, spec=TWO_CHANNELS)
    device.start()
    with pytest.raises(InferenceError, match="wants other samples"):
        device.bay.exchange(device.load("probe@2.0.0"), keep_old=False)
    assert device.serving == "1.0.0"
