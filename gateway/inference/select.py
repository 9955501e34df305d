"""Which artefact of a release runs on what, for one pipeline."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from gateway.config import Pipeline
from gateway.errors import BackendUnavailableError, ModelError
from gateway.inference.backend import Backend
from gateway.inference.bundle import OpenWeights, Release, ReleaseStore
from gateway.inference.edgetpu import EdgeTpuBackend
from gateway.inference.litert import LiteRtBackend
from gateway.inference.model import Model, PreparationFor, open_model
from gateway.wire.manifest import Artefact, ModelManifest, Target

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Choice:
    """An artefact and the backend that can run it."""

    backend: Backend
    artefact: Artefact


@dataclass(frozen=True, slots=True)
class Choices:
    """What could run, the best first, and why the rest cannot."""

    usable: tuple[Choice, ...]
    passed_over: tuple[str, ...]


class BackendFailures:
    """Which backends have failed, while another took their place: told when that begins and when it is over.

    A pipeline loads its model anew at each try, as while its camera is away. Methods may be called from any thread.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._reasons: dict[tuple[str, str], str] = {}

    def failed(self, model: str, backend: str, reason: str) -> None:
        """Note a failure; told again only when the reason is another one."""
        with self._lock:
            before, self._reasons[model, backend] = self._reasons.get((model, backend)), reason
        if before != reason:
            log.warning("backend_failed", model=model, backend=backend, error=reason)

    def worked(self, model: str, backend: str) -> None:
        """Note that a backend runs the model."""
        with self._lock:
            before = self._reasons.pop((model, backend), None)
        if before is not None:
            log.info("backend_works_again", model=model, backend=backend)


def default_backends(settings: Pipeline) -> tuple[Backend, ...]:
    """Return the backends this program has, the preferred first.

    Raises:
        ConfigError: the pipeline's device string is none.
    """
    return EdgeTpuBackend(settings.device), LiteRtBackend()


def choices_for(manifest: ModelManifest, wanted: str, backends: Sequence[Backend]) -> Choices:
    """Work out what can run a release; probes only backends for which there is an artefact.

    Args:
        manifest: of the release.
        wanted: a backend's name, or `auto`.
        backends: the preferred first.
    """
    usable: list[Choice] = []
    passed_over: list[str] = []
    for backend in backends:
        if wanted not in ("auto", backend.name):
            continue
        artefact = _first_artefact(manifest, backend.targets)
        if artefact is None:
            there = ", ".join(artefact.target for artefact in manifest.artefacts)
            passed_over.append(f"{backend.name}: needs {' or '.join(backend.targets)}, the release has {there}")
            continue
        availability = backend.probe()
        if availability.available:
            usable.append(Choice(backend, artefact))
        else:
            passed_over.append(f"{backend.name}: {availability.reason}")
    return Choices(tuple(usable), tuple(passed_over))


def load_model(
    store: ReleaseStore,
    settings: Pipeline,
    preparation_for: PreparationFor,
    open_weights: OpenWeights,
    *,
    backends: Sequence[Backend] | None = None,
    failures: BackendFailures | None = None,
) -> Model:
    """Find the release a pipeline names and load it on the best backend there is.

    With `auto`, a backend that fails is passed over for the next; every reason is logged, or in the error. Call it on
    the thread that will use the model.

    Args:
        store: where releases are.
        settings: model, backend, device, threads and minimum score are used.
        preparation_for: `gateway.preprocess.preparation.preparation_for`.
        open_weights: hands over an artefact, verified.
        backends: the preferred first; default all there are.
        failures: remembers what was told; default: nobody does.

    Raises:
        ModelError: no such release, or it cannot be run here.
        WeightsWithheldError: the key of its weights is not given out now; no other backend is tried.
        BackendUnavailableError: nothing that could run it is there.
        ConfigError: the device string is none.
    """
    release = store.find(settings.model)
    known = default_backends(settings) if backends is None else backends
    choices = choices_for(release.manifest, settings.backend, known)
    reasons = list(choices.passed_over)
    failed: list[tuple[Choice, BackendUnavailableError | ModelError]] = []
    for number, choice in enumerate(choices.usable, start=1):
        try:
            model = open_model(
                release,
                choice.artefact,
                choice.backend,
                preparation_for,
                open_weights=open_weights,
                threads=settings.threads,
                min_score=settings.min_score,
            )
        except (BackendUnavailableError, ModelError) as error:
            if number == len(choices.usable) and not reasons:
                raise
            failed.append((choice, error))
            reasons.append(f"{choice.backend.name}: {error}")
            continue
        # Told once there is another in its place: what fails altogether is tried again and again, and the error
        # names every backend; whoever tries tells when that begins and ends.
        told = failures or BackendFailures()
        for passed, why in failed:
            told.failed(release.label, passed.backend.name, str(why))
        told.worked(release.label, choice.backend.name)
        _tell(release, choice, model, reasons)
        return model
    message = f"model {release.label} cannot run here: " + "; ".join(reasons or [f"no backend {settings.backend!r}"])
    if any(isinstance(error, ModelError) for _, error in failed):
        raise ModelError(message)
    raise BackendUnavailableError(message)


def _tell(release: Release, choice: Choice, model: Model, passed_over: Sequence[str]) -> None:
    log.info(
        "model_loaded",
        model=release.label,
        target=choice.artefact.target,
        backend=model.info.backend,
        device=model.info.device,
        delegated_ops=model.info.delegated_ops,
        total_ops=model.info.total_ops,
        passed_over=list(passed_over),
    )


def _first_artefact(manifest: ModelManifest, targets: Sequence[Target]) -> Artefact | None:
    found = (manifest.artefact(target) for target in targets)
    return next((artefact for artefact in found if artefact is not None), None)
