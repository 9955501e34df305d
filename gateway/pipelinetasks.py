"""Runs pipelines one try after the other, for the supervisor: what is no failure, and when the next try makes sense."""

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import structlog

from gateway.errors import AcceleratorLostError, ModelAwaitedError, WeightsWithheldError
from gateway.modelwatch import fingerprint
from gateway.moments import happens
from gateway.pipeline import Pipeline
from gateway.threads import Leave, in_thread
from gateway.watchdog import Progress

log = structlog.get_logger()

STALLS_AFTER_SECONDS: Final = 60.0
_STOPPING_PAUSE_SECONDS: Final = 1.0
_LOOK_FOR_MODEL_EVERY_SECONDS: Final = 1.0
_AFTER_ACCELERATOR_LOSS_SECONDS: Final = 0.5
_KEY_PAUSES_SECONDS: Final = (1.0, 2.0, 5.0, 10.0)
"""Between two tries to get a key: soon enough after the TPM is back, and little work for one that is not."""


class Judge(Protocol):
    """Hears how runs end, and says when to look for a release: `gateway.updates.Updates`."""

    def ended(self, name: str, error: BaseException | None) -> None: ...
    def beckons(self, name: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What the runs need of the daemon."""

    stop: asyncio.Event
    progress: Progress
    arrivals: Callable[[], int]  # accelerators that have come so far
    leave: Mapping[str, Leave]  # has a run waited for no longer
    judge: Judge | None  # where releases come over the air
    announce: Callable[[], None]  # tells the site how the pipelines are
    directories: Sequence[Path]  # where models, keys and policies come


class PipelineTasks:
    """The tries of all pipelines. Belongs to the event loop."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._before: dict[str, tuple[int, int]] = {}  # what had come at the beginning of each pipeline's last try

    async def run(self, pipeline: Pipeline) -> None:
        """Run a pipeline until it has ended, or the gateway stops; raises what it fails of."""
        parts, name = self._parts, pipeline.name
        pauses = itertools.chain(_KEY_PAUSES_SECONDS, itertools.repeat(_KEY_PAUSES_SECONDS[-1]))
        while not parts.stop.is_set():
            parts.progress.expect(f"pipeline-{name}", STALLS_AFTER_SECONDS)
            self._before[name] = self._come(name)
            try:
                await self._run_once(pipeline)
                return
            except WeightsWithheldError:
                pass  # no failure: `KeyWatch` has told it, and it is tried until the key is given out
            except ModelAwaitedError:
                pass  # nor this: the twin says so, and it is tried until a release is brought
            except AcceleratorLostError as error:  # no failure either: another may be there, or the CPU will do
                log.warning("pipeline_lost_accelerator", pipeline=name, error=str(error))
                await self.pause(_AFTER_ACCELERATOR_LOSS_SECONDS)
                continue
            finally:
                parts.progress.forget(f"pipeline-{name}")
                parts.announce()
            await self.pause_for_model(name, next(pauses))

    async def pause(self, seconds: float) -> None:
        """Wait before a restart, but not for long when the gateway stops meanwhile."""
        if await happens(self._parts.stop, seconds):
            # A real wait even then: what fails at once, again and again, must leave the loop time to end it.
            await asyncio.sleep(min(seconds, _STOPPING_PAUSE_SECONDS))

    async def pause_for_model(self, name: str, seconds: float) -> None:
        """Wait before a pipeline is tried again; not any longer once a model, a key or an accelerator has come, or its
        updates beckon.
        """
        parts = self._parts
        look = partial(fingerprint, parts.directories)  # a medium that hangs holds up nobody else
        before = await in_thread(f"look-{name}", look)
        deadline = time.monotonic() + seconds
        looks = itertools.count(1)
        while (left := deadline - time.monotonic()) > 0 and not parts.stop.is_set():
            await self.pause(min(left, _LOOK_FOR_MODEL_EVERY_SECONDS / 4))
            if self._come(name) != self._before.get(name, (0, 0)):
                return
            if next(looks) % 4 == 0 and await in_thread(f"look-{name}", look) != before:
                return

    def _come(self, name: str) -> tuple[int, int]:
        """Return how many accelerators have come so far, and how often the pipeline was told to look."""
        judge = self._parts.judge
        return self._parts.arrivals(), judge.beckons(name) if judge is not None else 0

    async def _run_once(self, pipeline: Pipeline) -> None:
        """Run a pipeline, and tell the updates how that ended: a release on trial must not end it badly."""
        parts = self._parts
        failure: BaseException | None = None
        try:
            await in_thread(f"infer-{pipeline.name}", pipeline.run, parts.leave[pipeline.name])
        except Exception as error:
            failure = error
            raise
        finally:
            if parts.judge is not None:
                await in_thread(f"ended-{pipeline.name}", partial(parts.judge.ended, pipeline.name, failure))
