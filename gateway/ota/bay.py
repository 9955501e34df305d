"""One pipeline as updates see it: what serves, what may take over, and the way back. Acts; decides nothing."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import structlog

from gateway.config import Pipeline as PipelineSettings
from gateway.errors import GatewayError, ModelAwaitedError, PipelineBusyError
from gateway.inference.model import Model
from gateway.ota.watch import Watch
from gateway.wire.manifest import ModelManifest
from gateway.wire.messages import ModelRef

log = structlog.get_logger()

DRAIN_SECONDS: Final = 10.0
"""A model that looks at one sample for longer hangs."""
_SPARE_BYTES: Final = 256 << 20
_MEMINFO: Final = Path("/proc/meminfo")


class Host(Protocol):
    """A running pipeline: `gateway.pipeline.Pipeline`."""

    @property
    def looking_seconds(self) -> float: ...
    @property
    def model(self) -> Model | None: ...
    def swap(self, model: Model, timeout_seconds: float = ...) -> Model: ...
    def abandon(self, reason: str, error: GatewayError | None = None) -> None: ...


class Bay:
    """The place where the model of one pipeline is exchanged."""

    def __init__(self, settings: PipelineSettings, load: Callable[[str], Model], watch: Watch) -> None:
        """Take what is needed; the pipeline itself is given later, because it needs the watch.

        Args:
            settings: of the pipeline.
            load: loads `name@version`, warmed up.
            watch: the spectator of the pipeline.
        """
        self.settings = settings
        self.watch = watch
        self.lock = threading.RLock()  # held while a model is exchanged
        self.host: Host | None = None
        self.beckons = 0  # how often a pipeline that does not run was told to look for its model at once
        self._load = load
        self._kept: Model | None = None

    @property
    def serving(self) -> ModelRef | None:
        """What answers now."""
        model = self._model
        return model.ref if model is not None else None

    @property
    def manifest(self) -> ModelManifest | None:
        """Of what answers now."""
        model = self._model
        return model.manifest if model is not None else None

    @property
    def latency_target_ms(self) -> float | None:
        """What the release that answers now promises."""
        manifest = self.manifest
        return manifest.constraints.latency_target_ms if manifest is not None else None

    @property
    def looking_seconds(self) -> float:
        """How long the present sample has been looked at."""
        return self.host.looking_seconds if self.host is not None else 0.0

    @property
    def _model(self) -> Model | None:
        return self.host.model if self.host is not None else None

    def serves(self, label: str) -> bool:
        """Tell whether `name@version` answers now."""
        ref = self.serving
        return ref is not None and f"{ref.name}@{ref.version}" == label

    def load(self, label: str) -> Model:
        """Return a release, loaded: the one that was kept, or from the store."""
        kept = self._kept
        if kept is not None and f"{kept.ref.name}@{kept.ref.version}" == label:
            self._kept = None
            return kept
        return self._load(label)

    def exchange(self, model: Model, *, keep_old: bool) -> None:
        """Let a model answer from the next sample on; with `keep_old` the old one stays loaded, if memory allows.

        Raises:
            PipelineBusyError: the pipeline waits for the outbox; the model is kept for the next try, if memory allows.
            InferenceError: the pipeline does not run, or hangs; the model was closed.
        """
        assert self.host is not None
        self.watch.forget_gap(model.ref)
        try:
            old = self.host.swap(model, DRAIN_SECONDS)
        except PipelineBusyError:
            self._keep(model)
            raise
        except BaseException:
            if self.serving != model.ref:
                model.close()
            raise
        log.info(
            "model_swapped", model=f"{model.ref.name} {model.ref.version}", old=f"{old.ref.name} {old.ref.version}"
        )
        if keep_old:
            self._keep(old)
        else:
            old.close()

    def _keep(self, model: Model) -> None:
        if not _memory_allows():
            model.close()
            return
        self.let_go()
        self._kept = model

    def give_up(self, reason: str) -> None:
        """Leave a run of the pipeline that hangs; the next one begins with what the journal says."""
        if self.host is not None:
            self.host.abandon(reason)

    def stand_down(self, error: ModelAwaitedError) -> None:
        """End the run of a pipeline that has nothing to run any more; that is no failure, and it waits."""
        if self.host is not None:
            self.host.abandon(str(error), error)

    def beckon(self) -> None:
        """Have a pipeline that does not run look for its model now."""
        self.beckons += 1

    def let_go(self) -> None:
        """Close what was kept."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()


def _memory_allows() -> bool:
    """Tell whether the machine can spare the memory of a model that only waits."""
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 >= _SPARE_BYTES
    except (OSError, ValueError) as error:
        log.debug("memory_unknown", error=str(error))
    return False
