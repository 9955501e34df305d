"""Values that pass between the stages. Nothing here does anything."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.wire.messages import Event, Eviction, Evidence, Measure, ModelRef, Notice, RecordClass

Done = Callable[[], None]
"""Says that something was dealt with. Any thread may call it; saying it twice is saying it once."""


class Held(Protocol):
    """Something received that its sender keeps until it was dealt with. Any thread may call these."""

    def done(self) -> None:
        """What was decided from it is durable, or it is of no use."""

    def again(self) -> None:
        """It was not looked at: hand it to whoever opens the source next."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture from one camera."""

    source: str
    sequence: int  # 1 for the first frame after the source was opened; never reused while the daemon runs
    captured_at_ns: int  # UTC, stamped by the source, never rewritten later
    received_ns: int  # monotonic, for latencies
    image: NDArray[np.uint8]  # (height, width, 3), BGR as cameras and OpenCV give it


@dataclass(frozen=True, slots=True)
class SampleBlock:
    """Consecutive samples of one sensor, as many as came at once."""

    source: str
    captured_at_ns: int  # UTC of the first sample
    received_ns: int  # monotonic, when the last sample was there
    rate_hz: float
    samples: NDArray[np.float32]  # (n, channels), in the unit the source is configured to
    held: Held | None = field(default=None, compare=False, repr=False)  # told when these samples were dealt with


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of samples of fixed length, ready for a model."""

    source: str
    sequence: int
    captured_at_ns: int  # UTC of the last sample: when what it shows was complete
    received_ns: int  # monotonic, when the last sample was there
    rate_hz: float
    samples: NDArray[np.float32]  # (samples, channels)
    done: Done | None = field(default=None, compare=False, repr=False)  # called when what was decided is durable


Capture = Frame | SampleBlock
"""What a source yields."""

Sample = Frame | Window
"""What a model looks at."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle as fractions of the picture, 0..1, left < right and top < bottom."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a model says about one sample.

    `score` is 0..1. For anomaly models it is squashed so that 0.5 is the threshold, and the model's own
    figure and threshold stand beside it. `channel` is the sensor channel, where a model looks at each alone.
    """

    label: str
    score: float
    box: Box | None = None
    raw_score: float | None = None
    threshold: float | None = None
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Inference:
    """The answer of a model to one sample."""

    source: str
    sequence: int
    captured_at_ns: int
    received_ns: int  # monotonic, copied from the sample
    model: ModelRef
    findings: tuple[Finding, ...]  # the best first
    invoke_ns: int  # time inside the runtime
    raw_bytes: int  # size of the sample before preprocessing
    anomaly: bool = False  # the model is an anomaly detector: its findings are scores, not things
    given: tuple[tuple[str, tuple[float, ...]], ...] = ()  # its input tensor in numbers, see `gateway.inference.given`


Kind = Literal["event", "measure", "evidence", "eviction", "notice"]


@dataclass(frozen=True, slots=True)
class Entry:
    """Something to be kept in the outbox until the cloud has it."""

    record_class: RecordClass
    kind: Kind
    body: Event | Measure | Evidence | Eviction | Notice
    recorded_at_ns: int
    blob: bytes = b""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules made of one inference: what to keep and tell, in this order.

    `snapshot` names the evidence the pipeline must attach (cut, encode, enqueue) if its byte budget allows.
    """

    entries: tuple[Entry, ...] = ()
    snapshots: tuple["SnapshotWish", ...] = field(default=())


@dataclass(frozen=True, slots=True)
class SnapshotWish:
    """A picture or window that should travel with an event."""

    evidence_id: str
    event_id: str
    box: Box | None


@dataclass(frozen=True, slots=True)
class Stored:
    """One row of the outbox, its body as the JSON that was committed."""

    seq: int
    kind: str
    recorded_at_ns: int
    body: bytes
    blob: bytes = b""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """Consecutive rows of one class, in order, as the uplink sends them."""

    record_class: RecordClass
    epoch: str
    base: int  # the lowest sequence number the store still answers for
    rows: tuple[Stored, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that an entry is durable: its key in the store."""

    record_class: RecordClass
    epoch: str
    seq: int
