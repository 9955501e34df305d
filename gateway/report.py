"""What a gateway says about itself: `gateway status`, and the last words of a run."""

from typing import Literal

import msgspec

from gateway.wire.messages import Mode, ModelRef, PipelineStatus, RecordClass


class ClassReport(msgspec.Struct, frozen=True, kw_only=True):
    """One class of the outbox and its way to the cloud."""

    depth: int
    size_bytes: int
    oldest_age_seconds: float | None = None
    full_in_seconds: float | None = None  # at this rate; None: not
    empty_in_seconds: float | None = None
    incoming_rows_per_second: float = 0.0  # averaged over `rate_over_seconds`
    incoming_bytes_per_second: float = 0.0  # on disk
    outgoing_rows_per_second: float = 0.0  # acknowledged by the cloud
    outgoing_bytes_per_second: float = 0.0
    refusing: bool = False  # full, and producers wait
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
    rate_over_seconds: float = 60.0
    ignored_acks: int = 0  # for another epoch, beyond everything stored, or unreadable
    classes: dict[RecordClass, ClassReport] = {}


class LinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """A connection to a broker."""

    state: str
    broker: str = ""
    reason: str = ""
    dropped: dict[str, int] = {}  # what could not be used or kept, by reason


class HoldReport(msgspec.Struct, frozen=True, kw_only=True):
    """Why something waits, and until when (RFC 3339; None: no end is known)."""

    reason: Literal["budget", "window"]
    until: str | None = None


class FeatureReport(msgspec.Struct, frozen=True, kw_only=True):
    """One use of the way to the cloud, in bytes of MQTT: TLS, TCP and IP come on top."""

    sent_bytes: int = 0  # since the gateway started
    received_bytes: int = 0
    month_sent_bytes: int = 0  # in this calendar month, over restarts
    month_received_bytes: int = 0
    budget_bytes: int | None = None
    per: str = ""
    spent_bytes: int = 0  # of the budget
    left_bytes: int | None = None
    renews_at: str | None = None
    window_open: bool = True
    window_until: str | None = None  # when it closes, or opens
    hold: HoldReport | None = None


class LinkUsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the way to the cloud carries, and what waits for a budget or a window."""

    metered: bool  # whether the limits apply to the broker in use
    features: dict[str, FeatureReport] = {}
    held: dict[RecordClass, HoldReport] = {}
    network_sent_bytes: int = 0  # estimated: IP packets, TLS and retransmissions included
    network_received_bytes: int = 0


class KeyReport(msgspec.Struct, frozen=True, kw_only=True):
    """The content key of a release on this device."""

    label: str  # `name version`; may be empty
    release: str  # SHA-256 of the manifest
    lease_until: str | None = None  # RFC 3339; None: without end
    remaining_seconds: float | None = None  # 0: over, and refused when the model is opened next


class VaultReport(msgspec.Struct, frozen=True, kw_only=True):
    """The vault, as it was looked at last."""

    level: str  # "tpm" or "software"
    initialised: bool = False
    ready: bool = False  # a key would be given out now
    problems: list[str] = []
    warnings: list[str] = []
    releases: list[str] = []  # sealed ones, `name version`
    keys: list[KeyReport] = []
    waiting: dict[str, str] = {}  # pipelines that wait for the key of their model, with the reason
    refusals: int = 0  # how often a key was not given out since the start


class IdentityReport(msgspec.Struct, frozen=True, kw_only=True):
    """The identity of this gateway."""

    state: str
    level: str
    spiffe_id: str = ""
    expires_in_seconds: float | None = None  # negative: over
    renewals: int = 0
    refusals: int = 0
    reason: str = ""
    boot_state: str = ""


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
    link_usage: LinkUsageReport | None = None
    vault: VaultReport | None = None
    identity: IdentityReport | None = None
    time_zone: str = "UTC"
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
