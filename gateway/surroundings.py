"""What a pipeline needs of the program around it, and who looks on."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Protocol

from gateway import processor
from gateway.errors import GatewayError, InferenceError
from gateway.inference.model import Model
from gateway.sources.base import Source
from gateway.sources.presence import LocalDevice
from gateway.values import Entry, Inference, Receipt, Sample
from gateway.wire.messages import Event, ModelRef


class Spectator(Protocol):
    """Looks on while models answer. Called on the inference thread, which waits for it: it must be quick.

    `seconds` is how long an answer took, without what its thread waited for a processor: that is the machine's doing.
    `busy_seconds` is how long the thread was on one, or on an accelerator. What is between the two it waited for
    something else: for other threads of the model, or, in this interpreter, for its turn.
    """

    def answered(self, sample: Sample, inference: Inference, seconds: float, busy_seconds: float) -> None: ...
    def failed(self, model: ModelRef, error: InferenceError) -> None: ...
    def swapped(self, model: ModelRef, gap_seconds: float) -> None: ...


class Nobody:
    """A spectator that does not look."""

    def answered(self, sample: Sample, inference: Inference, seconds: float, busy_seconds: float) -> None:
        """Look away."""

    def failed(self, model: ModelRef, error: InferenceError) -> None:
        """Look away."""

    def swapped(self, model: ModelRef, gap_seconds: float) -> None:
        """Look away."""


class Instruments(Protocol):
    """Where a pipeline counts what it does."""

    def captured(self, pipeline: str, count: int) -> None: ...
    def inferred(self, pipeline: str, inference: Inference, latency_seconds: float, batch_fill: float) -> None: ...
    def sent(self, pipeline: str, raw_bytes: int, sent_bytes: int) -> None: ...
    def told(self, pipeline: str, event: Event) -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a pipeline needs of the program around it."""

    gateway: str
    time_zone: tzinfo
    open_source: Callable[[], Source]
    load_model: Callable[[], Model]
    submit: Callable[[Sequence[Entry], Callable[[Sequence[Receipt]], None]], None]
    publish: Callable[[Sequence[Entry]], None]  # called once the entries are durable
    instruments: Instruments
    new_id: Callable[[int], str]
    wall_ns: Callable[[], int]
    monotonic_ns: Callable[[], int]
    waited_ns: Callable[[], int] = processor.waited_ns  # how long the calling thread has waited for a processor so far
    busy_ns: Callable[[], int] = time.thread_time_ns  # how long it has been on one
    wants_pictures: Callable[[], bool] = lambda: True  # whether evidence is wanted at all just now
    may_keep: Callable[[int], bool] = lambda _size: True  # whether the link can ever carry a picture of this size
    renew: Callable[[], None] = lambda: None  # what an earlier run had in hand may be handed to the source again
    max_held: int = 0  # messages of a leaf sensor that may be held only to fill a window
    spectator: Spectator = Nobody()  # noqa: RUF009 - it has no state
    device: LocalDevice | None = None  # what the source reads, where it is a device of this machine
    leave: Callable[[GatewayError], None] = lambda _error: None  # has whoever waits for the run wait no longer
