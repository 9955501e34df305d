"""When a pipeline moves to an accelerator, and what happens when it cannot."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from gateway.config import Pipeline as PipelineSettings
from gateway.errors import BackendUnavailableError, InferenceError
from gateway.inference.litert import InterpreterSession
from gateway.inference.model import Model
from gateway.moving import Mover
from gateway.wire.manifest import Classification, Plain, Target, WindowInput
from tests.gateway.inference.graphs import custom, dense
from tests.gateway.inference.manifests import load, write_release

FOUR = WindowInput(samples=4, hop_samples=4, rate_hz=1, features=Plain())
LABELS = Classification(labels=("a", "b", "c", "d"))
AUTO = PipelineSettings(source="s", model="probe")


class Host:
    """A pipeline with a model of its own, which takes another or refuses."""

    def __init__(self, model: Model | None, backend: str = "litert-cpu") -> None:
        self.model = model
        self.backend = backend
        self.refuses = False

    def swap(self, model: Model, timeout_seconds: float = 30.0) -> Model:
        if self.refuses:
            raise InferenceError("pipeline p does not run")
        assert self.model is not None
        old, self.model = self.model, model
        return old


class Site:
    """One pipeline, and what can be loaded for it."""

    def __init__(self, host: Host, settings: PipelineSettings, opens: Callable[[], Model]) -> None:
        self.wished: list[str] = []
        self.held = 0

        def loads(wanted: PipelineSettings) -> Model:
            assert self.held
            self.wished.append(wanted.model)
            return opens()

        self.mover = Mover({"p": host}, {"p": settings}, loads, lambda _name: self._hold())

    @contextmanager
    def _hold(self) -> Iterator[None]:
        self.held += 1
        yield
        self.held -= 1


def released(directory: Path, *targets: Target) -> Model:
    plain = dense(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))
    contents = {target: custom("edgetpu-custom-op") if target == "edgetpu" else plain for target in targets}
    write_release(directory, contents, FOUR, LABELS)
    return load(directory)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A model on the CPU whose release has an artefact for the accelerator, too."""
    return released(tmp_path / "models", "edgetpu", "cpu-float")


def on_accelerator(model: Model) -> Model:
    """The same model, said to be on the accelerator."""
    session = model._session
    assert isinstance(session, InterpreterSession)
    session._info = replace(session.info, backend="edgetpu")
    return model


def nothing() -> Model:
    raise AssertionError("nothing is to be loaded")


def test_the_release_that_answers_now_goes_on_on_the_accelerator(tmp_path: Path, model: Model) -> None:
    host = Host(model)
    other = on_accelerator(load(tmp_path / "models"))
    site = Site(host, AUTO, lambda: other)
    with capture_logs() as logs:
        assert site.mover.move("p")
    assert host.model is other
    assert site.wished == ["probe@1.0.0"]
    assert site.held == 0
    assert [entry["event"] for entry in logs] == ["pipeline_moved"]


@pytest.mark.parametrize("settings", [PipelineSettings(source="s", model="probe", backend="litert-cpu")])
def test_who_asked_for_the_cpu_stays_there(model: Model, settings: PipelineSettings) -> None:
    assert Site(Host(model), settings, nothing).mover.move("p")


def test_who_is_on_the_accelerator_already_stays_as_it_is(model: Model) -> None:
    assert Site(Host(model, "edgetpu"), AUTO, nothing).mover.move("p")


def test_a_release_without_an_artefact_for_it_stays_on_the_cpu(tmp_path: Path) -> None:
    assert Site(Host(released(tmp_path / "models", "cpu-float")), AUTO, nothing).mover.move("p")


def test_a_pipeline_that_does_not_run_yet_is_to_be_asked_again() -> None:
    assert not Site(Host(None, ""), AUTO, nothing).mover.move("p")


def test_an_accelerator_that_cannot_be_opened_leaves_the_pipeline_as_it_was(model: Model) -> None:
    def busy() -> Model:
        raise BackendUnavailableError("another program may hold it")

    host = Host(model)
    with capture_logs() as logs:
        assert Site(host, AUTO, busy).mover.move("p")
    assert host.model is model
    assert [(entry["event"], entry["error"]) for entry in logs] == [
        ("pipeline_not_moved", "another program may hold it")
    ]


def test_a_model_that_came_up_on_the_cpu_again_is_not_taken(tmp_path: Path, model: Model) -> None:
    host = Host(model)
    assert Site(host, AUTO, lambda: load(tmp_path / "models")).mover.move("p")
    assert host.model is model


def test_a_pipeline_that_does_not_take_it_keeps_what_it_has(tmp_path: Path, model: Model) -> None:
    host = Host(model)
    host.refuses = True
    with capture_logs() as logs:
        assert Site(host, AUTO, lambda: on_accelerator(load(tmp_path / "models"))).mover.move("p")
    assert host.model is model
    assert logs[-1]["event"] == "pipeline_not_moved"
