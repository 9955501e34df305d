"""One try of a pipeline after the other: which ends are no failures, and what ends the pause between two tries."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from gateway.errors import AcceleratorLostError, ModelAwaitedError, ModelError, WeightsWithheldError
from gateway.pipeline import Pipeline
from gateway.pipelinetasks import Parts, PipelineTasks
from gateway.threads import Leave
from gateway.watchdog import Progress

NAME = "dock"
LONG_SECONDS = 60.0
SOON_SECONDS = 10.0  # far below that, and far above what a busy machine takes

Outcome = Callable[[], None]


def fails(error: Exception) -> Outcome:
    def end() -> None:
        raise error

    return end


def returns() -> None:
    """End as a recording does."""


@dataclass
class Script:
    """A pipeline whose tries end as is written, one after the other; once all are used up the last one again."""

    outcomes: list[Outcome]
    name: str = NAME
    tries: list[float] = field(default_factory=list)

    def run(self) -> None:
        self.tries.append(time.monotonic())
        self.outcomes[min(len(self.tries), len(self.outcomes)) - 1]()


@dataclass
class Verdicts:
    """Takes the place of the updates over the air."""

    heard: list[BaseException | None] = field(default_factory=list)
    beckoned: int = 0

    def ended(self, name: str, error: BaseException | None) -> None:
        assert name == NAME
        self.heard.append(error)

    def beckons(self, name: str) -> int:
        assert name == NAME
        return self.beckoned


@dataclass
class Around:
    """Knobs: `arrivals`, how many accelerators have come; `folder`, where a model may come."""

    folder: Path
    arrivals: int = 0
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    clock: list[float] = field(default_factory=lambda: [0.0])
    verdicts: Verdicts = field(default_factory=Verdicts)
    announced: int = 0

    def __post_init__(self) -> None:
        self.progress = Progress(lambda: self.clock[0])
        self.tasks = PipelineTasks(
            Parts(
                stop=self.stop,
                progress=self.progress,
                arrivals=lambda: self.arrivals,
                leave={NAME: Leave()},
                judge=self.verdicts,
                announce=self._announce,
                directories=[self.folder],
            )
        )

    def _announce(self) -> None:
        self.announced += 1

    async def run(self, *outcomes: Outcome) -> Script:
        script = Script([*outcomes])
        await asyncio.wait_for(self.tasks.run(cast(Pipeline, script)), SOON_SECONDS)
        return script


@pytest.fixture
def around(tmp_path: Path) -> Around:
    return Around(tmp_path)


async def test_a_pipeline_that_ends_is_not_run_again_and_the_site_is_told(around: Around) -> None:
    script = await around.run(returns)
    assert len(script.tries) == 1
    assert around.verdicts.heard == [None]
    assert around.announced == 1


async def test_a_failure_is_the_supervisors_and_the_judge_hears_it_first(around: Around) -> None:
    error = ModelError("wrong shape")
    with pytest.raises(ModelError, match="wrong shape"):
        await around.run(fails(error), returns)
    assert around.verdicts.heard == [error], "it was tried once: how often again is not decided here"
    assert around.announced == 1


async def test_a_key_that_is_not_given_out_is_no_failure_and_is_asked_for_again(around: Around) -> None:
    script = await around.run(fails(WeightsWithheldError("the TPM is away")), returns)
    assert len(script.tries) == 2
    assert script.tries[1] - script.tries[0] >= 0.9, "not at once"


async def test_a_release_that_has_not_come_yet_is_no_failure(around: Around) -> None:
    script = await around.run(fails(ModelAwaitedError("a rollout brings it")), returns)
    assert len(script.tries) == 2
    assert script.tries[1] - script.tries[0] >= 0.9, "not at once"


async def test_updates_that_beckon_end_the_pause(around: Around) -> None:
    async with pausing(around):
        around.verdicts.beckoned += 1


async def test_updates_that_beckon_during_a_try_leave_no_pause_behind_it(around: Around) -> None:
    def beckoned_meanwhile() -> None:
        around.verdicts.beckoned += 1
        raise ModelAwaitedError("it came when this try had looked already")

    script = await around.run(beckoned_meanwhile, returns)
    assert script.tries[1] - script.tries[0] < 0.9


async def test_an_accelerator_that_goes_is_no_failure_and_another_is_looked_for_soon(around: Around) -> None:
    script = await around.run(fails(AcceleratorLostError("pulled out")), returns)
    assert len(script.tries) == 2
    assert script.tries[1] - script.tries[0] >= 0.4


async def test_the_watchdog_expects_a_pipeline_only_while_it_is_tried(around: Around) -> None:
    late_inside: list[dict[str, float]] = []

    def hang() -> None:
        around.clock[0] += 1000.0
        late_inside.append(around.progress.late())

    await around.run(hang)
    assert late_inside == [{f"pipeline-{NAME}": 1000.0}]
    around.clock[0] += 1000.0
    assert around.progress.late() == {}


async def test_a_gateway_that_stops_begins_no_further_try(around: Around) -> None:
    script = Script([fails(WeightsWithheldError("no key")), returns])
    async with asyncio.timeout(SOON_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(around.tasks.run(cast(Pipeline, script)))
        while not script.tries:
            await asyncio.sleep(0.01)
        around.stop.set()
    assert len(script.tries) == 1


async def test_a_pause_ends_soon_when_the_gateway_stops_but_never_at_once(around: Around) -> None:
    """At once would let what fails again and again keep the event loop from ending it."""
    around.stop.set()
    began = time.monotonic()
    await asyncio.wait_for(around.tasks.pause(LONG_SECONDS), SOON_SECONDS)
    assert time.monotonic() - began >= 0.9


@asynccontextmanager
async def pausing(around: Around) -> AsyncIterator[None]:
    """Pause for long after a try that failed; the block is to end the pause, which has looked around by then."""
    with pytest.raises(ModelError):
        await around.run(fails(ModelError("no model")))
    async with asyncio.timeout(SOON_SECONDS), asyncio.TaskGroup() as group:
        pause = group.create_task(around.tasks.pause_for_model(NAME, LONG_SECONDS))
        await asyncio.sleep(0.5)
        assert not pause.done()
        yield


async def test_an_accelerator_that_comes_ends_the_pause(around: Around) -> None:
    async with pausing(around):
        around.arrivals += 1


async def test_a_model_that_comes_ends_the_pause(around: Around) -> None:
    async with pausing(around):
        release = around.folder / "detector" / "1.0.0"
        release.mkdir(parents=True)
        (release / "manifest.json").write_text("{}")


async def test_an_accelerator_that_had_come_before_the_try_does_not_end_the_pause(around: Around) -> None:
    """The control: it was there for the try, which failed all the same."""
    around.arrivals = 3
    async with pausing(around):
        around.stop.set()
