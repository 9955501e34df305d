"""The model slot."""

import threading
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import InferenceError
from gateway.inference.model import Model
from gateway.inference.slot import ModelSlot
from gateway.wire.manifest import Plain, Regression, WindowInput
from tests.gateway.inference.manifests import load, window, write_release
from tests.simulators.runtime import ScriptedBackend, tensor

SAMPLE = window(np.ones((4, 1), np.float32))


def backend(value: float, hold: threading.Event | None = None) -> ScriptedBackend:
    """A model that answers `value`; from its second run on it waits for `hold`."""
    runs = 0

    def answer(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        nonlocal runs
        runs += 1
        if hold is not None and runs > 1:
            assert hold.wait(10)
        return (np.full((len(batch), 1), value, np.float32),)

    return ScriptedBackend(inputs=(tensor((1, 4)),), outputs=(tensor((1, 1)),), answer=answer)


def model(tmp_path: Path, version: str, made_by: ScriptedBackend) -> Model:
    spec = WindowInput(samples=4, hop_samples=4, rate_hz=1, features=Plain())
    write_release(tmp_path, {"cpu-int8": b"x"}, spec, Regression(threshold=1.0), version=version)
    return load(tmp_path, backends=(made_by,))


def test_an_idle_old_model_is_closed_at_once(tmp_path: Path) -> None:
    first, second = backend(1), backend(2)
    old, new = model(tmp_path, "1.0.0", first), model(tmp_path, "2.0.0", second)
    slot = ModelSlot(old)
    assert slot.swap(new) is old
    assert first.sessions[0].closed
    assert slot.current is new
    with slot.using() as used:
        assert used.infer(SAMPLE).model.version == "2.0.0"
    assert not second.sessions[0].closed


def test_a_model_in_use_finishes_its_sample_before_it_is_closed(tmp_path: Path) -> None:
    hold = threading.Event()
    first, second = backend(1, hold), backend(2)
    old, new = model(tmp_path, "1.0.0", first), model(tmp_path, "2.0.0", second)
    slot = ModelSlot(old)
    answers: list[str] = []
    busy = threading.Event()

    def infer() -> None:
        with slot.using() as used:
            busy.set()
            answers.append(used.infer(SAMPLE).model.version)
        with slot.using() as used:
            answers.append(used.infer(SAMPLE).model.version)

    thread = threading.Thread(target=infer)
    thread.start()
    assert busy.wait(10)
    slot.swap(new)
    assert not first.sessions[0].closed
    assert not slot.drained(old, 0.01)
    hold.set()
    assert slot.drained(old, 10)
    thread.join(10)
    assert answers == ["1.0.0", "2.0.0"]
    assert first.sessions[0].closed


def test_a_failed_sample_frees_the_model(tmp_path: Path) -> None:
    first = backend(1)
    old = model(tmp_path, "1.0.0", first)
    slot = ModelSlot(old)
    with pytest.raises(InferenceError), slot.using() as used:
        used.infer(window(np.ones((5, 1), np.float32)))
    slot.swap(model(tmp_path, "2.0.0", backend(2)))
    assert first.sessions[0].closed


def test_a_closed_slot_gives_no_model_and_takes_none(tmp_path: Path) -> None:
    first, second = backend(1), backend(2)
    slot = ModelSlot(model(tmp_path, "1.0.0", first))
    slot.close()
    slot.close()
    assert first.sessions[0].closed
    with pytest.raises(InferenceError, match="stopping"), slot.using():
        pass
    with pytest.raises(InferenceError, match="stopping"):
        slot.swap(model(tmp_path, "2.0.0", second))
    assert not second.sessions[0].closed


def test_a_slot_closed_during_a_sample_closes_the_model_after_it(tmp_path: Path) -> None:
    first = backend(1)
    slot = ModelSlot(model(tmp_path, "1.0.0", first))
    with slot.using() as used:
        slot.close()
        assert used.infer(SAMPLE).findings[0].raw_score == 1.0
    assert first.sessions[0].closed


def test_swapping_a_model_for_itself_keeps_it_open(tmp_path: Path) -> None:
    first = backend(1)
    slot = ModelSlot(model(tmp_path, "1.0.0", first))
    slot.swap(slot.current)
    assert not first.sessions[0].closed


def test_many_swaps_under_use_never_meet_a_closed_model(tmp_path: Path) -> None:
    made = [backend(n) for n in range(100)]
    models = [model(tmp_path, f"1.0.{n}", one) for n, one in enumerate(made)]
    slot = ModelSlot(models[0])
    failures: list[str] = []
    stop = threading.Event()

    def infer() -> None:
        while not stop.is_set():
            try:
                with slot.using() as used:
                    used.infer(SAMPLE)
            except InferenceError as error:
                failures.append(str(error))

    thread = threading.Thread(target=infer)
    thread.start()
    for following in models[1:]:
        slot.swap(following)
    stop.set()
    thread.join(10)
    slot.close()
    assert failures == []
    assert all(one.sessions[0].closed for one in made)
