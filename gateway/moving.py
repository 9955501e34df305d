"""Moves a running pipeline from the CPU to an accelerator that was plugged in, between two samples."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec
import structlog

from gateway.config import Pipeline as PipelineSettings
from gateway.errors import GatewayError
from gateway.inference.edgetpu import EDGETPU_BACKEND
from gateway.inference.model import Model

log = structlog.get_logger()


class Movable(Protocol):
    """A pipeline: `gateway.pipeline.Pipeline`."""

    @property
    def backend(self) -> str: ...
    @property
    def model(self) -> Model | None: ...
    def swap(self, model: Model, timeout_seconds: float = ...) -> Model: ...


class Mover:
    """Opens the release that answers now on the accelerator, and swaps it in. Blocks; one call at a time."""

    def __init__(
        self,
        pipelines: Mapping[str, Movable],
        settings: Mapping[str, PipelineSettings],
        load: Callable[[PipelineSettings], Model],
        exchanging: Callable[[str], AbstractContextManager[object]],
    ) -> None:
        """Take what is needed.

        Args:
            pipelines: by name.
            settings: of each pipeline.
            load: opens a release on the best backend there is.
            exchanging: is held while the model of a pipeline is exchanged.
        """
        self._pipelines = pipelines
        self._settings = settings
        self._load = load
        self._exchanging = exchanging

    def move(self, name: str) -> bool:
        """Have a pipeline that makes do with the CPU go on with an accelerator that has come; loses no sample.

        False if it does not run yet: it may be starting without it. What fails is told, and nothing changes then.
        """
        pipeline, settings = self._pipelines[name], self._settings[name]
        if settings.backend != "auto" or pipeline.backend == EDGETPU_BACKEND:
            return True
        with self._exchanging(name):
            model = pipeline.model
            if model is None:
                return False
            if model.manifest.artefact("edgetpu") is not None:
                self._exchange(name, msgspec.structs.replace(settings, model=f"{model.ref.name}@{model.ref.version}"))
        return True

    def _exchange(self, name: str, settings: PipelineSettings) -> None:
        pipeline = self._pipelines[name]
        fresh: Model | None = None
        try:
            fresh = self._load(settings)
            if fresh.info.backend != EDGETPU_BACKEND:
                return
            old = pipeline.swap(fresh)
            old.close()
            log.info("pipeline_moved", pipeline=name, backend=EDGETPU_BACKEND)
        except GatewayError as error:
            log.warning("pipeline_not_moved", pipeline=name, error=str(error))
        finally:
            if fresh is not None and pipeline.model is not fresh:
                fresh.close()
