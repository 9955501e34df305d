"""What a gateway says about itself: `gateway status`, and the last words of a run."""

import msgspec

from gateway.wire.messages import Mode, ModelRef, PipelineStatus, RecordClass


class ClassReport(msgspec.Struct, frozen=True, kw_only=True):
    """One class of the outbox and its way to the cloud."""

    depth: int
    size_bytes: int
    oldest_age_seconds: float | None = None
    full_in_seconds: float | None = None
    evicted: int = 0
    sent_bytes: int = 0
    resent_batches: int = 0


class OutboxReport(msgspec.Struct, frozen=True, kw_only=True):
    """The outbox."""

    state: str  # "open" or "failed"
    epoch: str
    reason: str | None = None
    disk_full: bool = False
    queued_entries: int = 0  # decisions that are not durable yet
    ignored_acks: int = 0  # for another epoch, beyond everything stored, or unreadable
    classes: dict[RecordClass, ClassReport] = {}


class LinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """A connection to a broker."""

    state: str
    broker: str = ""
    reason: str = ""
    dropped: dict[str, int] = {}  # what could not be used or kept, by reason


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `gateway status`."""

    gateway: str
    version: str
    at: str
    uptime_seconds: float
    pid: int
    pipelines: list[PipelineStatus]
    outbox: OutboxReport
    cloud: LinkReport | None = None
    local: LinkReport | None = None
    partition: str = ""
    metrics_url: str = ""
    components: dict[str, str] = {}  # supervised parts that are not running, with the reason
    mode: Mode = "A"


class PipelineTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What one pipeline did in a run."""

    captures: int
    frames: int
    windows: int
    inferences: int
    events: int
    raw_bytes: int
    sent_bytes: int
    dropped: dict[str, int]
    backend: str
    model: ModelRef | None = None
    last_error: str | None = None


class LastRun(msgspec.Struct, frozen=True, kw_only=True):
    """`last-run.json` in the state directory, written at a clean stop."""

    gateway: str
    version: str
    stopped_at: str
    ran_seconds: float
    drained: bool
    pipelines: dict[str, PipelineTotals]
