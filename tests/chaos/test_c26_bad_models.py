"""C26: releases that are signed and bad: each is refused or taken back within a minute, and the old one goes on."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gateway.config import Trial
from gateway.ota import canary
from gateway.wire.manifest import Classification, Plain, WindowInput
from tests.chaos.experiment import Experiment
from tests.gateway.inference.graphs import dense
from tests.gateway.ota.releases import release, scorer
from tests.gateway.ota.rig import Device
from tests.simulators import bad_models
from tests.simulators.release_repository import ReleaseRepository
from tests.simulators.waiting import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

PROMISED_SECONDS = 60.0
"""To the end of a bad release, but for what the machine made it wait for a processor."""
TRIED_SECONDS = 5.0
"""What the child that tries one which hangs has here of that; a device gives it `canary.SECONDS`."""
LONGEST_SECONDS = 420.0
"""With that wait, where a hundredth of a processor is all there is to spare. A device gives up sooner, as `busy`."""

LABELS = Classification(labels=("calm", "loud"), top=1)
BOTH = dense(np.array([[0.2] * 4, [0.05] * 4], np.float32), np.zeros(2, np.float32))
ONE = WindowInput(samples=1, hop_samples=1, rate_hz=100.0, features=Plain())
IDENTITY = dense(np.ones((1, 1), np.float32), np.zeros(1, np.float32))


@pytest.fixture
def device(experiment: Experiment) -> Iterator[Device]:
    made = Device(
        experiment.directory / "device",
        ReleaseRepository(experiment.directory / "repository"),
        trial=Trial(seconds=600.0, min_inferences=10_000),
    )
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note how long the child that tries a release has waited for a processor, seconds, as the device counts it."""
    looks = [0.0]
    look = canary.waited

    def noted(pid: int) -> float:
        looks.append(look(pid))
        return looks[-1]

    monkeypatch.setattr(canary, "waited", noted)
    return looks


def give(device: Device, content: bytes, **more: object) -> None:
    folder = release(device.repository.directory / "plain", "2.0.0", content, **more)  # type: ignore[arg-type]
    device.repository.publish(folder)
    device.desire("2.0.0", token=1)


def goes_back(
    device: Device, began: float, waited: list[float], phase: str, code: str, *, promised: float = PROMISED_SECONDS
) -> None:
    """Wait until the device has given it up, and make sure that the old release went on and that it is told why."""
    device.reaches(phase, "2.0.0", code, seconds=LONGEST_SECONDS)
    wait_for(lambda: device.serving == "1.0.0", seconds=PROMISED_SECONDS)
    assert time.monotonic() - began - max(waited) < promised
    answers = len(device.record.versions)
    wait_for(lambda: len(device.record.versions) > answers + 10, what="answers of the old release")
    assert device.record.versions[-1] == "1.0.0"
    assert [each.code for each in device.slot.blocked] == [code]
    wait_for(lambda: device.reports[-1].updates and device.reports[-1].updates[0].code == code)


def start(device: Device, content: bytes, answers: int = 100, **more: object) -> float:
    release(device.releases, "1.0.0", content, **more)  # type: ignore[arg-type]
    device.start()
    wait_for(lambda: len(device.record.versions) >= answers, seconds=30)
    return time.monotonic()


@pytest.mark.parametrize(
    ("make", "ends"),
    [
        (bad_models.fatal, ("refused", "crash")),
        (bad_models.endless, ("refused", "hangs")),
        (bad_models.not_a_number, ("reverted", "not-a-number")),
        (bad_models.slow, ("reverted", "latency")),
    ],
    ids=lambda value: value.__name__ if callable(value) else "-".join(value),
)
def test_c26_a_release_that_misbehaves_is_given_up(
    experiment: Experiment,
    device: Device,
    waited: list[float],
    monkeypatch: pytest.MonkeyPatch,
    *,
    make: Callable[[int], bytes],
    ends: tuple[str, str],
) -> None:
    promised = PROMISED_SECONDS
    if make is bad_models.endless:
        monkeypatch.setattr(canary, "prove", partial(canary.prove, seconds=TRIED_SECONDS))
        monkeypatch.setattr(canary, "STARVED_TIMES", (LONGEST_SECONDS - PROMISED_SECONDS) / TRIED_SECONDS)
        promised -= canary.SECONDS - TRIED_SECONDS
    began = start(device, scorer(1.0))
    give(device, make(4), golden=None)
    goes_back(device, began, waited, *ends, promised=promised)
    seconds = round(time.monotonic() - began, 2)
    experiment.log("given up", code=ends[1], seconds=seconds, waited_seconds=round(max(waited), 2))


def test_c26_wrong_labels_are_noticed(device: Device, waited: list[float]) -> None:
    began = start(device, BOTH, golden=None, output=LABELS)
    give(device, BOTH, golden=None, output=Classification(labels=("loud", "calm"), top=1))
    goes_back(device, began, waited, "reverted", "output-drift")


def test_c26_one_that_hangs_on_a_live_sample_is_left_and_the_old_one_goes_on(device: Device) -> None:
    start(device, IDENTITY, golden=None, spec=ONE)
    give(device, bad_models.endless_above(100.0), golden=(1.0, 1.0), spec=ONE)
    device.reaches("trial", "2.0.0", seconds=LONGEST_SECONDS)
    began = time.monotonic()
    device.sensor.value = 200.0
    assert device.left.wait(60)  # whoever waits for the run is told to wait no longer
    device.rerun()
    goes_back(device, began, [0.0], "reverted", "hangs")


def test_c26_without_the_child_the_process_would_end(tmp_path: Path) -> None:
    """The control: the same bytes, loaded where they are not expected to do harm."""
    (tmp_path / "m.tflite").write_bytes(bad_models.fatal(4))
    program = (
        "import sys\nfrom ai_edge_litert.interpreter import Interpreter\n"
        "Interpreter(model_path=sys.argv[1]).allocate_tensors()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "m.tflite")], check=False, timeout=60)
    assert done.returncode == -signal.SIGSEGV


def test_c26_control_without_the_child_the_caller_would_never_go_on(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(bad_models.endless(4))
    program = (
        "import sys\nfrom ai_edge_litert.interpreter import Interpreter\n"
        "made = Interpreter(model_path=sys.argv[1])\nmade.allocate_tensors()\n"
        "print('loaded', flush=True)\nmade.invoke()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "m.tflite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as caller:
        try:
            assert caller.stdout is not None
            assert caller.stdout.readline() == b"loaded\n"
            with pytest.raises(subprocess.TimeoutExpired):
                caller.wait(3.0)
        finally:
            caller.kill()


@pytest.mark.parametrize("kind", ["slow", "wrong labels"])
def test_c26_control_a_trial_that_asks_nothing_keeps_such_a_release(device: Device, kind: str) -> None:
    device.stop()
    device.trial = Trial(
        seconds=0.0, min_inferences=0, max_latency_ratio=1e9, drift_effect=1.0, drift_significance=1e-300
    )
    device._make()
    if kind == "wrong labels":
        start(device, BOTH, golden=None, output=LABELS)
        give(device, BOTH, golden=None, output=Classification(labels=("loud", "calm"), top=1))
    else:
        start(device, scorer(1.0))
        give(device, bad_models.slow(4), golden=None)
    device.reaches("running", "2.0.0", seconds=LONGEST_SECONDS)
    assert device.slot.blocked == ()
    assert device.serving == "2.0.0"


def test_c26_a_good_release_is_not_given_up(device: Device) -> None:
    """The control of the others: what is as good as the old one stays."""
    device.trial = Trial(seconds=3.0, min_inferences=100)
    device.stop()
    device._make()
    start(device, scorer(1.0))
    give(device, scorer(1.0))
    device.reaches("running", "2.0.0", seconds=LONGEST_SECONDS)
    assert device.slot.blocked == ()
