"""The types of the configuration file. All defaults stand here and nowhere else.

Only a broker is needed; `cloud_bridge.configload` reads the file and checks it, and nothing changes it later.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from gateway.wire.messages import RecordClass

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Days = Annotated[float, msgspec.Meta(gt=0, le=100_000)]
Pcr = Annotated[int, msgspec.Meta(ge=0, le=23)]

MIB = 1024 * 1024


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all parts of the file: unknown keys are errors."""


class Broker(_Section, frozen=True, kw_only=True):
    """An MQTT broker: `mqtt://host:1883` or `mqtts://host:8883`. Off loopback only mqtts is accepted."""

    url: str
    username: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None  # default: the system's
    crl_file: Path | None = None  # revoked certificates of the broker's CA; a list that is out of date refuses too
    certificate_file: Path | None = None
    key_file: Path | None = None
    protocol: Literal["5", "3.1.1"] = "5"
    keepalive_seconds: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30
    allow_plaintext: bool = False  # for a network you trust: mqtt:// to a host that is not this one


class Store(_Section, frozen=True, kw_only=True):
    """Where records are kept: `sqlite:////absolute/path`, `sqlite:///relative/path`, or `postgresql://host/database`."""

    url: str = "sqlite:////var/lib/sluice-bridge/bridge.db"
    password_file: Path | None = None  # of PostgreSQL


class Ingest(_Section, frozen=True, kw_only=True):
    """How records are taken from the brokers."""

    root: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,64}$")] = "sluice"
    workers: Annotated[int, msgspec.Meta(ge=1, le=32)] = 1  # connections to each broker, each with a thread
    subscription: Literal["shared", "plain"] = "shared"  # plain: for brokers without shared subscriptions
    group: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_.-]{0,63}$")] = "bridge"
    client_id: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9._-]{1,100}$")] | None = None  # default: by host name
    receive_maximum: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 200  # messages taken and not yet committed
    batch_messages: Count = 200  # messages in one transaction
    batch_bytes: Annotated[int, msgspec.Meta(ge=64 * 1024)] = 16 * MIB
    # Long enough for a restart, and no longer: brokers go on giving a dead member of the group its share of the
    # messages for as long as its session lasts, and devices then have to send them again.
    session_expiry_seconds: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 30
    # An older store that was used with this broker and is not written to any more is waited for so long.
    older_store_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0


class Retention(_Section, frozen=True, kw_only=True):
    """How long records are kept, in days since they were received; null: for ever."""

    critical_days: Days | None = 730.0
    event_days: Days | None = 365.0
    measure_days: Days | None = 90.0
    bulk_days: Days | None = 30.0
    dead_letter_days: Days | None = 90.0
    every_seconds: Seconds = 3600.0
    slice_rows: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 2000  # removed in one transaction
    # PostgreSQL: `month` drops a month (UTC) at once when all of it is due, so that records are kept for up to a month
    # longer than the days say; `row` removes them on the day, one by one.
    postgres: Literal["month", "row"] = "month"
    rollup_hourly_days: Days | None = 800.0  # by time of capture
    rollup_daily_days: Days | None = None

    def days(self) -> dict[RecordClass, float | None]:
        """Return the days by class."""
        return {
            "critical": self.critical_days,
            "event": self.event_days,
            "measure": self.measure_days,
            "bulk": self.bulk_days,
        }


class Rollups(_Section, frozen=True, kw_only=True):
    """Sums by hour and by day of capture: what is left of records after retention."""

    enabled: bool = True
    every_seconds: Seconds = 30.0
    slice_rows: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 2000  # folded in one transaction


class Console(_Section, frozen=True, kw_only=True):
    """The web page and the HTTP API. Off loopback they need a token."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8470  # 0: any free port, told in the log
    token_file: Path | None = None
    host_names: list[str] = []  # under which people reach it, e.g. through a proxy


class Metrics(_Section, frozen=True, kw_only=True):
    """Prometheus metrics: at the console's address under `/metrics`, or at a port of their own."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None


class LocalIssuer(_Section, frozen=True, kw_only=True, tag="local"):
    """The bridge's own authority signs devices; its key is in `identity.directory`."""


class _ForeignIssuer(_Section, frozen=True, kw_only=True):
    """An authority outside of the bridge signs devices; the bridge checks each certificate before it gives it out."""

    trust_anchors: Path  # PEM: whom brokers must believe of devices; read again when it has changed
    revocations: Path | None = None  # PEM: the authority's revocation list, as something else keeps it here
    at_once: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4  # requests that wait for the authority at the same time


class CommandIssuer(_ForeignIssuer, frozen=True, kw_only=True, tag="command"):
    """A program signs: a request as JSON on its standard input, the chain as PEM on its standard output."""

    command: Annotated[list[str], msgspec.Meta(min_length=1)]  # the program and its arguments; no shell
    # Less than a device waits for the bridge's answer, which is 30 s.
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=25)] = 10.0


class PluginIssuer(_ForeignIssuer, frozen=True, kw_only=True, tag="plugin"):
    """A Python package signs: an entry point of the group `sluice.issuers`."""

    name: str  # of the entry point
    options: dict[str, Any] = {}  # handed to it as they are


class Identity(_Section, frozen=True, kw_only=True):
    """Enrolment, attestation and certificates of devices, over HTTPS on a port of its own. Off without this section."""

    # As SPIFFE has it (SPIFFE-ID §2.1). It stands in every certificate: choose once.
    trust_domain: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$(?!\n)")]
    directory: Path | None = None  # authorities, keys, with SQLite the database; /var/lib/sluice-bridge/identity
    issuer: LocalIssuer | CommandIssuer | PluginIssuer = LocalIssuer()  # who signs devices
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8471  # 0: any free port, told in the log
    names: list[str] = []  # host names and addresses of this listener, for its certificate; localhost is always there
    ek_roots: Path | None = None  # directory with the roots of TPM makers; without it a claim token vouches alone
    pcrs: Annotated[tuple[Pcr, ...], msgspec.Meta(min_length=1)] = (4, 7, 11)  # what a quote covers, bank SHA-256
    allow_software: bool = False  # development: devices whose keys are in files, not in a TPM
    certificate_seconds: Annotated[int, msgspec.Meta(ge=60, le=7 * 86400)] = 3600
    backdate_seconds: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 120  # for devices whose clock is behind
    challenge_seconds: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 60
    lease_days: Days = 30.0  # how long a device may use a content key without attesting itself
    server_days: Days = 30.0  # certificates of the broker, this listener and the bridge; renewed half-way
    event_days: Days = 365.0
    requests_per_minute: Annotated[int, msgspec.Meta(ge=1)] = 120  # from one address
    requests_per_gateway_per_minute: Annotated[int, msgspec.Meta(ge=1)] = 12  # under one name, from one address
    broker_directory: Path | None = None  # made by `cloud-bridge broker-config`; kept up to date here
    broker_pid_file: Path | None = None  # of a mosquitto to be told with SIGHUP; a systemd unit can do it instead
    cut_sessions: bool = True  # end MQTT connections of revoked devices, and those older than their certificate

    def home(self) -> Path:
        """Return the directory that counts."""
        return self.directory or Path("/var/lib/sluice-bridge/identity")


class Registry(_Section, frozen=True, kw_only=True):
    """Releases of models, signed as a TUF repository, served over HTTPS on a port of their own. Off without this.

    `url` is where releases are kept: a directory, or what fsspec knows, such as `s3://bucket/prefix`.
    """

    url: str = "/var/lib/sluice-bridge/registry"
    keys: Path = msgspec.field(default_factory=lambda: Path("/var/lib/sluice-bridge/registry-keys"))  # online keys
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8472  # 0: any free port, told in the log
    requests_per_minute: Annotated[int, msgspec.Meta(ge=1)] = 3000  # from one address; a site may have only one
    over_mqtt: bool = True  # answers devices that reach nothing but the broker
    timestamp_days: Days = 7.0  # how long the repository counts as fresh without the bridge
    snapshot_days: Days = 30.0
    targets_days: Days = 365.0
    root_days: Days = 730.0
    delta_parents: Annotated[int, msgspec.Meta(ge=0, le=32)] = 3  # releases that run in the fleet, most frequent first
    check_seconds: Seconds = 300.0  # for loading a release and its golden inputs at publication
    check_memory_bytes: Annotated[int, msgspec.Meta(ge=64 * MIB)] = 4096 * MIB
    min_quality_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.98  # of the float model's figure


class Rollout(_Section, frozen=True, kw_only=True):
    """How releases are given to devices when a rollout does not say otherwise."""

    enabled: bool | None = None  # one more connection to each broker, for twins; default: with a section `registry`
    every_seconds: Seconds = 10.0  # between two looks at a rollout
    soak_minutes: Days = 60.0
    max_failing_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.02
    min_events: Count = 100  # of a device group, before its scores are judged
    significance: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.05  # of a false halt over a whole rollout
    min_effect: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1  # smallest KS distance that halts
    max_latency_ratio: Annotated[float, msgspec.Meta(gt=1)] = 1.5  # p95 of the new release against the old
    max_anomaly_ratio: Annotated[float, msgspec.Meta(gt=1)] = 3.0  # events an hour, either way
    max_error_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.02  # more samples without an answer than before
    past_hours: Days = 24.0  # how much of a device's time before the release it is compared with
    pending_hours: Days = 24.0  # a device that is not reached counts as pending for so long, then as left out
    silent_minutes: Days = 15.0  # a device that took a release and lost its connection for so long counts as failing
    spread_seconds: Annotated[float, msgspec.Meta(ge=0)] = 60.0  # within which the devices of a wave are told
    twins_per_second: Annotated[float, msgspec.Meta(gt=0)] = 100.0  # published to a broker


class Drift(_Section, frozen=True, kw_only=True):
    """Watches how far inputs and answers are from what a release was trained on."""

    enabled: bool = True
    every_seconds: Seconds = 900.0
    window_hours: Days = 24.0
    min_samples: Count = 200
    psi_warning: Annotated[float, msgspec.Meta(gt=0)] = 0.1
    psi_alarm: Annotated[float, msgspec.Meta(gt=0)] = 0.25
    outside_warning: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.1  # share beyond what training has seen
    outside_alarm: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.25
    significance: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.01  # of one look at a device or cohort
    retrain: Literal["never", "propose", "canary"] = "propose"  # what an alarm leads to
    releases: list[Path] = []  # directories with releases that are in no registry, for their baselines
    directory: Path | None = None  # of the file with what is known; default: beside the store's file


class Log(_Section, frozen=True, kw_only=True):
    """Logging: `auto` is for people in a terminal and JSON elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Config(_Section, frozen=True, kw_only=True):
    """The whole file."""

    brokers: list[Broker] = []
    store: Store = Store()
    ingest: Ingest = Ingest()
    retention: Retention = Retention()
    rollups: Rollups = Rollups()
    console: Console = Console()
    metrics: Metrics = Metrics()
    identity: Identity | None = None
    registry: Registry | None = None
    rollout: Rollout = Rollout()
    drift: Drift = Drift()
    log: Log = Log()

    @property
    def gives_rollouts(self) -> bool:
        """Whether this bridge tells devices what to run."""
        return self.registry is not None if self.rollout.enabled is None else self.rollout.enabled
