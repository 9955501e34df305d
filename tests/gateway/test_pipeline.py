"""What a pipeline says of its source, and what it keeps."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC

import pytest

from gateway.config import MqttSource
from gateway.config import Pipeline as PipelineSettings
from gateway.errors import ModelError, OutboxError
from gateway.health.metrics import Metrics
from gateway.inference.model import Model
from gateway.pipeline import Pipeline
from gateway.sources.base import Source
from gateway.sources.capture import SourceState, State
from gateway.surroundings import Surroundings
from gateway.values import Entry, Receipt
from gateway.wire.messages import Notice


class Kept:
    """An outbox that remembers, or is closed."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.closed = False

    def submit(self, entries: Sequence[Entry], done: Callable[[Sequence[Receipt]], None]) -> None:
        if self.closed:
            raise OutboxError("the outbox is closed")
        self.entries += entries

    @property
    def notices(self) -> list[Notice]:
        return [entry.body for entry in self.entries if isinstance(entry.body, Notice)]


def no_model() -> Model:
    raise ModelError("model gone: put it back")


def no_source() -> Source:
    raise AssertionError("without a model no source is opened")


def pipeline(kept: Kept) -> Pipeline:
    around = Surroundings(
        gateway="gw",
        time_zone=UTC,
        open_source=no_source,
        load_model=no_model,
        submit=kept.submit,
        publish=lambda _entries: None,
        instruments=Metrics(),
        new_id=str,
        wall_ns=time.time_ns,
        monotonic_ns=time.monotonic_ns,
    )
    source = MqttSource(topic="a", rate_hz=1.0)
    return Pipeline("motor", PipelineSettings(source="motor", model="gone"), source, around)


def state(word: State, error: str = "") -> SourceState:
    return SourceState("motor", word, time.time_ns(), error)


def test_a_pipeline_that_failed_does_not_say_that_its_source_still_streams() -> None:
    failed = pipeline(Kept())
    failed._on_state(state("streaming"))
    with pytest.raises(ModelError):
        failed.run()
    status = failed.status()
    assert (status.state, status.source_state, status.last_error) == ("failed", "opening", "model gone: put it back")


def test_a_source_that_freezes_is_kept_for_the_cloud_when_it_begins_and_when_it_ends() -> None:
    kept = Kept()
    watched = pipeline(kept)
    watched._on_state(state("opening"))
    watched._on_state(state("streaming"))
    watched._on_state(state("frozen", "channel 0 does not change any more"))
    watched._on_state(state("frozen", "channel 0, 1 does not change any more"))
    watched._on_state(state("streaming"))
    first, second = kept.notices
    assert (first.code, first.severity) == ("source_frozen", "warning")
    assert "motor" in first.detail
    assert "channel 0" in first.detail
    assert (second.code, second.severity) == ("source_not_frozen", "info")


def test_a_gateway_that_is_stopping_may_lose_such_a_notice_and_nothing_else() -> None:
    kept = Kept()
    kept.closed = True
    watched = pipeline(kept)
    watched._on_state(state("frozen"))
    assert watched.status().source_state == "frozen"
