"""The types of the configuration file. All defaults stand here and nowhere else.

A component receives its own part. `gateway.configload` reads the file and checks it; nothing changes it later.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from gateway.wire.messages import RecordClass

Name = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,62}$")]
GatewayId = Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,63}$")]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Bytes = Annotated[int, msgspec.Meta(ge=4096)]
TcpPort = Annotated[int, msgspec.Meta(ge=1, le=65535)]
ByteCount = (
    Annotated[int, msgspec.Meta(ge=1)]
    | Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(\.[0-9]+)? ?(B|kB|KB|MB|GB|KiB|MiB|GiB)$")]
)
TimeOfDay = Annotated[str, msgspec.Meta(pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$")]

KIB = 1024
MIB = 1024 * KIB


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all parts of the file: unknown keys are errors."""


# ---- sources -------------------------------------------------------------------------------------


class CameraSource(_Section, frozen=True, kw_only=True, tag="camera"):
    """A camera: `/dev/video0`, `rtsp://…`, `http://…/stream.mjpg`, or a video file played at its own rate."""

    device: str
    fps: Annotated[float, msgspec.Meta(gt=0, le=120)] | None = None  # at most so many; None: as they come
    width: Count | None = None  # asked of a V4L2 device
    height: Count | None = None
    username: str | None = None
    password_file: Path | None = None
    query_file: Path | None = None  # holds what follows the `?` of the address, e.g. token=…
    timeout_seconds: Seconds = 5.0
    frozen_after_seconds: Seconds = 10.0  # the same picture for so long is a fault


class ReplaySource(_Section, frozen=True, kw_only=True, tag="replay"):
    """Recorded data: a video file, a CSV or an npz file, at its own rate times `speed`.

    `speed: max` hands over as fast as the pipeline takes and drops nothing (for benchmarks and back-fills).
    """

    file: Path
    speed: Annotated[float, msgspec.Meta(gt=0)] | Literal["max"] = 1.0
    loop: bool = False
    rate_hz: Annotated[float, msgspec.Meta(gt=0)] | None = None  # needed for CSV and npz without times
    columns: list[str] | None = None  # of a CSV; default: all numeric columns but the time
    array: str | None = None  # of an npz; (n, channels) or (windows, n, channels)
    block_samples: Count | None = None


class IioSource(_Section, frozen=True, kw_only=True, tag="iio"):
    """A Linux Industrial I/O sensor: polled through sysfs, or by its triggered buffer for high rates."""

    device: str  # its name, label or path, e.g. `adxl345` or `/dev/sluice/iio-adxl345-1-0053`
    channels: list[str]  # e.g. [in_accel_x, in_accel_y, in_accel_z]
    rate_hz: Annotated[float, msgspec.Meta(gt=0)]
    buffered: bool = False
    block_samples: Count | None = None
    frozen_after_seconds: Seconds | None = 300.0  # a channel with the very same value for so long is a fault; null: not


class ModbusRegister(_Section, frozen=True, kw_only=True):
    """One value read from a Modbus device."""

    address: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    kind: Literal["int16", "uint16", "int32", "uint32", "float32"] = "int16"
    table: Literal["holding", "input"] = "holding"
    scale: float = 1.0
    offset: float = 0.0
    word_order: Literal["big", "little"] = "big"


class ModbusSource(_Section, frozen=True, kw_only=True, tag="modbus"):
    """A Modbus TCP (`tcp://host:502`) or RTU (`serial:///dev/ttyUSB0?baudrate=19200`) device, polled."""

    device: str
    unit: Annotated[int, msgspec.Meta(ge=0, le=247)] = 1
    registers: list[ModbusRegister]
    rate_hz: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0
    timeout_seconds: Seconds = 2.0
    frozen_after_seconds: Seconds | None = None  # a register with the very same value for so long is a fault


class SerialSource(_Section, frozen=True, kw_only=True, tag="serial"):
    """Lines of numbers from a serial device, separated by commas, semicolons or white space."""

    device: Path
    baudrate: Count = 115200
    channels: Count = 1
    rate_hz: Annotated[float, msgspec.Meta(gt=0)]
    silent_after_seconds: Seconds = 10.0
    frozen_after_seconds: Seconds | None = None  # a column with the very same value for so long is a fault


class MqttSource(_Section, frozen=True, kw_only=True, tag="mqtt"):
    """Messages of leaf sensors on the local broker: a number, a JSON list of numbers, or a field of a JSON object."""

    topic: str
    fields: list[str] | None = None
    sequence_field: str | None = None  # a counter or time of the leaf: a message with the same one again is dropped
    channels: Count = 1
    rate_hz: Annotated[float, msgspec.Meta(gt=0)]
    silent_after_seconds: Seconds = 60.0
    frozen_after_seconds: Seconds | None = None  # a value that stays the very same for so long is a fault


HealthChannel = Literal["load", "memory_used", "memory_pressure", "cpu_pressure", "temperature", "disk_used"]


class HealthSource(_Section, frozen=True, kw_only=True, tag="health"):
    """The machine's own health: load, memory, temperature where it has one."""

    rate_hz: Annotated[float, msgspec.Meta(gt=0, le=100)] = 1.0
    channels: tuple[HealthChannel, ...] = ("load", "memory_used")


Source = CameraSource | ReplaySource | IioSource | ModbusSource | SerialSource | MqttSource | HealthSource

# ---- pipelines -----------------------------------------------------------------------------------


class Zone(_Section, frozen=True, kw_only=True):
    """A polygon in fractions of the picture, [[x, y], …]; a box belongs to it when its foot point is inside."""

    name: Name
    polygon: Annotated[list[tuple[Fraction, Fraction]], msgspec.Meta(min_length=3)]


class TimeWindow(_Section, frozen=True, kw_only=True):
    """A part of the day in the gateway's time zone; over midnight when `end` is not after `start`."""

    start: TimeOfDay
    end: TimeOfDay
    days: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] | None = None


class Rule(_Section, frozen=True, kw_only=True):
    """When a finding becomes an event.

    An event opens when the finding stays at or above `min_score` for `hold_seconds`, ends when it stays below
    `min_score - hysteresis` (or is gone) for `gone_seconds`, and does not open again for `cool_down_seconds`.
    """

    name: Name
    labels: list[str] | None = None  # None: any label of the model
    min_score: Fraction = 0.5
    hysteresis: Fraction = 0.05
    zone: Name | None = None
    active: list[TimeWindow] | None = None
    hold_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    gone_seconds: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    cool_down_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    update_seconds: Annotated[float, msgspec.Meta(gt=0)] = 10.0  # an open event is told again at most so often
    record_class: Literal["critical", "event"] = "event"
    snapshot: bool = False


class Privacy(_Section, frozen=True, kw_only=True):
    """What of a picture may leave the device as evidence; by default all of it. Events and measures go in any case.

    `send`: `all` is the box of a finding with a margin, or the whole picture where there is no box; `box` is the box
    alone, and nothing where there is none; `never` is no evidence at all, windows of sensors included. `hide` makes
    `regions` (everything, if none is given) unrecognisable before anything is cut out or encoded.
    """

    send: Literal["all", "box", "never"] = "all"
    hide: Literal["nothing", "pixelate", "blur"] = "nothing"
    regions: list[tuple[Fraction, Fraction, Fraction, Fraction]] = []  # left, top, right, bottom of the picture


class Interest(_Section, frozen=True, kw_only=True):
    """What travels: events and results that the model is unsure of; the rest only summed up."""

    low_confidence: tuple[Fraction, Fraction] | None = (0.4, 0.5)  # sent even without a rule; null: not
    low_confidence_every_seconds: Seconds = 30.0  # at most one such a label
    measure_every_seconds: Seconds = 60.0
    snapshot_bytes_per_hour: Annotated[int, msgspec.Meta(ge=0)] = 2 * MIB
    snapshot_quality: Annotated[int, msgspec.Meta(ge=10, le=95)] = 70
    snapshot_max_side: Count = 320
    privacy: Privacy = Privacy()


class Pipeline(_Section, frozen=True, kw_only=True):
    """One source through one model to decisions."""

    source: Name
    model: str  # `name` (the newest version found) or `name@version`
    backend: Literal["auto", "litert-cpu", "edgetpu"] = "auto"
    device: str = ""  # Edge TPU: "", "usb", "usb:0", "pci:0" as in the vendor's tools
    threads: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    min_score: Fraction | None = None  # below this a detection is not even counted; None: the manifest's
    rules: list[Rule] = []
    zones: list[Zone] = []
    interest: Interest = Interest()


# ---- delivery ------------------------------------------------------------------------------------


class Broker(_Section, frozen=True, kw_only=True):
    """An MQTT broker: `mqtt://host:1883` or `mqtts://host:8883`. Off loopback only mqtts is accepted."""

    url: str
    username: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    crl_file: Path | None = None  # revoked certificates of the broker's CA; a list that is out of date refuses too
    certificate_file: Path | None = None
    key_file: Path | None = None
    protocol: Literal["5", "3.1.1"] = "5"
    keepalive_seconds: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30
    allow_plaintext: bool = False  # for a network you trust: mqtt:// to a host that is not this one
    identity: bool = False  # show the certificate of `identity`, and believe whom it believes; needs mqtts
    metered: bool | None = None  # whether `metering` applies on the way to it; null: unless another broker says true


class Cloud(_Section, frozen=True, kw_only=True):
    """The way to the cloud bridge: brokers in order of preference."""

    brokers: list[Broker] = []
    publish_events: bool = False  # also show events, status and measures on the cloud's broker
    batch_records: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 500
    batch_bytes: Annotated[int, msgspec.Meta(ge=1024, le=8 * MIB)] = 256 * KIB
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    ack_timeout_seconds: Seconds = 5.0
    fail_back_seconds: Seconds = 300.0
    drain_seconds: Annotated[float, msgspec.Meta(ge=0)] = 5.0  # a clean stop waits so long for an empty outbox


Feature = Literal["records", "snapshots", "model_downloads", "telemetry"]
FEATURES: tuple[Feature, ...] = ("records", "snapshots", "model_downloads", "telemetry")
Period = Literal["hour", "day", "month"]


class Budget(_Section, frozen=True, kw_only=True):
    """How many bytes may pass in a period of the gateway's time zone, both directions together.

    What MQTT carries is counted: whole packets with topic and properties. TLS, TCP and IP come on top (see
    `link_network_bytes` among the metrics).
    """

    bytes: ByteCount  # a number, or 500kB, 50MB, 1.5GB (powers of ten), 64KiB, 8MiB (powers of two)
    per: Period


class LinkWindow(_Section, frozen=True, kw_only=True):
    """A stretch of time in which something may be sent, in the gateway's time zone."""

    open: str  # when it begins, as in crontab(5): `0 2 * * *` is at 02:00 each day
    minutes: Annotated[int, msgspec.Meta(ge=1, le=10_080)]  # how long it stays open


class FeatureMetering(_Section, frozen=True, kw_only=True):
    """What one use of the link may cost, and when."""

    budget: Budget | None = None  # null: no limit
    windows: list[LinkWindow] = []  # none: always open


class ClassWindows(_Section, frozen=True, kw_only=True):
    """The windows of one class of records, instead of those of its feature."""

    windows: list[LinkWindow]


class Metering(_Section, frozen=True, kw_only=True):
    """What the way to the cloud may carry, where that costs money; nothing is limited unless it is said here.

    `snapshots` are the records of class `bulk`, `records` those of all other classes; `telemetry` is what
    `cloud.publish_events` shows; `model_downloads` are new releases.
    """

    features: dict[Feature, FeatureMetering] = {}
    classes: dict[RecordClass, ClassWindows] = {}
    override: tuple[RecordClass, ...] = ("critical",)  # sent whatever the budget and the windows say, and counted
    snapshots_beyond_budget: Literal["wait", "drop"] = "wait"  # drop: what the budget cannot carry is not kept


class HomeAssistant(_Section, frozen=True, kw_only=True):
    """Home Assistant MQTT discovery; off unless wished."""

    enabled: bool = False
    discovery_prefix: str = "homeassistant"
    birth_topic: str = "homeassistant/status"


class Local(_Section, frozen=True, kw_only=True):
    """The broker on the site, for people, programs and leaf sensors.

    It keeps what leaf sensors publish while the gateway is away, up to `session_expiry_seconds` and its own limits.
    """

    broker: Broker | None = None
    session_expiry_seconds: Annotated[int, msgspec.Meta(ge=0, le=4_294_967_295)] = 86_400  # 0: keep nothing
    home_assistant: HomeAssistant = HomeAssistant()


class ClassQuota(_Section, frozen=True, kw_only=True):
    """How much one class may hold, and what happens at the limit."""

    max_bytes: Bytes = 64 * MIB
    max_rows: Count = 1_000_000
    max_age_seconds: Seconds | None = None
    on_full: Literal["evict", "refuse"] = "evict"


DEFAULT_QUOTAS: dict[RecordClass, ClassQuota] = {
    "critical": ClassQuota(max_bytes=64 * MIB, on_full="refuse"),
    "event": ClassQuota(max_bytes=128 * MIB),
    "measure": ClassQuota(max_bytes=64 * MIB),
    "bulk": ClassQuota(max_bytes=256 * MIB, max_rows=100_000),
}


class Outbox(_Section, frozen=True, kw_only=True):
    """The store-and-forward database."""

    file: Path | None = None  # default: outbox.db in the state directory
    ballast_bytes: Annotated[int, msgspec.Meta(ge=0)] = 8 * MIB  # given back when the disk is full; 0, or from 2 MiB
    queue_entries: Count = 10_000  # decisions waiting for the disk; then producers wait
    classes: dict[RecordClass, ClassQuota] = msgspec.field(default_factory=lambda: dict(DEFAULT_QUOTAS))


# ---- the whole -----------------------------------------------------------------------------------


class Metrics(_Section, frozen=True, kw_only=True):
    """The Prometheus endpoint. Off loopback it needs a token."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 9464  # 0: any free port, told in the log and in status
    token_file: Path | None = None


class Log(_Section, frozen=True, kw_only=True):
    """Logging: `auto` is for people in a terminal and JSON elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Gateway(_Section, frozen=True, kw_only=True):
    """Who this gateway is and where it keeps what must survive."""

    id: GatewayId
    root: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,64}$")] = "sluice"
    # A factory, because the JSON schema cannot show a Path as a default.
    state_directory: Path = msgspec.field(default_factory=lambda: Path("/var/lib/sluice"))
    runtime_directory: Path | None = None  # of the control socket; default: the state directory
    time_zone: str = "UTC"


class Models(_Section, frozen=True, kw_only=True):
    """Where releases are looked for, besides those that ship with the program and `<state_directory>/models`.

    That one is the store in which all weights lie sealed: what is found in clear is sealed into it before it runs.
    """

    directories: list[Path] = []


class Identity(_Section, frozen=True, kw_only=True):
    """Where this gateway gets its one-hour certificates and content keys: the bridge's identity listener.

    Whom to believe the first time says the claim code, or `fingerprint` where the bridge knows this TPM already.
    """

    url: str  # https://bridge.example:8471
    claim_file: Path | None = None  # holds a code of `cloud-bridge identity token create`; or `gateway identity enrol`
    fingerprint: Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$")] | None = None  # of the bridge's authority


class Trial(_Section, frozen=True, kw_only=True):
    """What a new release has to prove before the old one is given up; what it fails at takes it back."""

    seconds: Seconds = 600.0  # from the swap until it counts as proven
    min_inferences: Count = 100  # and not before so many answers
    max_error_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05  # of samples without an answer
    max_latency_ratio: Annotated[float, msgspec.Meta(gt=1)] = 3.0  # p95 against the old release, without a target
    max_crashes: Count = 2  # runs of the gateway or the pipeline that ended badly under it
    drift_significance: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.001  # of the KS test against the old release
    drift_effect: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.25  # smallest KS distance that counts
    max_inputs_outside: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5  # share, of what it was trained on
    shadow_samples: Annotated[int, msgspec.Meta(ge=0)] = 0  # both answer so many samples before the swap; 0: none


class Ota(_Section, frozen=True, kw_only=True):
    """Where new releases of models come from. Without this section releases come from directories alone.

    Nothing is believed but what the keys behind `root_file` have signed. `url` is where the bridge serves its
    repository, or null where only the broker is reachable: then files come over MQTT.
    """

    root_file: Path  # the first root.json of the repository (TUF §5.2), brought by the image or by a person
    url: str | None = None  # https://bridge.example:8472
    ca_file: Path | None = None  # default: the authority of `identity`, or the system's without one
    hardware: str = ""  # what releases may be limited to, e.g. coral-devboard; default: the processor's architecture
    refresh_seconds: Seconds = 3600.0  # between two looks at the repository when nobody asks
    stale_after_days: Annotated[float, msgspec.Meta(gt=0)] = 7.0  # without fresh metadata: a notice, nothing stops
    offline_days: Annotated[float, msgspec.Meta(ge=0, le=3650)] = 0.0  # so much longer a timestamp counts
    deadline_seconds: Seconds = 1800.0  # for one file, all tries together
    min_bytes_per_second: Count = 512  # over 30 seconds; a slower source is given up for now
    max_release_bytes: Bytes = 1024 * MIB
    trial: Trial = Trial()


class Os(_Section, frozen=True, kw_only=True):
    """Updates of the system itself, through RAUC, on an appliance.

    Bundles come from the repository of `ota`, when the bridge assigns one, or from a medium. The device is restarted
    only while a window is open.
    """

    enabled: Literal["auto", "yes", "no"] = "auto"  # auto: where /usr/lib/sluice/appliance is
    windows: list[LinkWindow] = []  # when the device may be restarted; none: at any time
    flush_seconds: Annotated[float, msgspec.Meta(ge=0)] = 600.0  # a restart waits so long for an empty outbox
    delivery: Literal["auto", "download", "stream"] = "auto"  # auto: streams adaptive bundles, and what has no room
    directory: Path | None = None  # of fetched bundles; default: <state_directory>/os/bundles
    media: Literal["offer", "install", "off"] = "offer"  # what becomes of newer bundles on media that are plugged in
    media_directories: list[Path] = msgspec.field(
        default_factory=lambda: [Path("/media"), Path("/run/media"), Path("/run/sluice-media"), Path("/mnt")]
    )
    refresh_seconds: Seconds = 60.0  # between two looks at the slots while nothing is under way
    rauc: tuple[str, ...] = ("rauc",)  # the command
    release_file: Path = msgspec.field(default_factory=lambda: Path("/usr/lib/sluice/release.json"))  # what runs


class Vault(_Section, frozen=True, kw_only=True):
    """Where the key lives that protects model weights: they run from the sealed store alone.

    `level` is chosen, never assumed: `tpm` (a chip, or swtpm), or `software`, a file beside what it protects, for
    development only. What a TPM gives the key out for is said by policies that the policy key has signed.
    """

    level: Literal["tpm", "software"]
    tcti: str = "device:/dev/tpmrm0"  # or e.g. swtpm:host=127.0.0.1,port=2321
    timeout_seconds: Seconds = 10.0  # a TPM that does not answer in time is one that is not there
    policy_key_file: Path | None = None  # public, PEM, P-256; needed at level tpm
    policy_directory: Path = msgspec.field(default_factory=lambda: Path("/etc/sluice/policy"))  # *.policy.json
    pcrs: tuple[Annotated[int, msgspec.Meta(ge=0, le=23)], ...] = (7, 11)  # what `policy sign` and status look at
    lease_days: Annotated[float, msgspec.Meta(gt=0, le=36_500)] = 90.0  # of a key that came without an end


class Config(_Section, frozen=True, kw_only=True):
    """The whole file."""

    gateway: Gateway
    sources: dict[Name, Source]
    pipelines: dict[Name, Pipeline]
    models: Models = Models()
    vault: Vault
    identity: Identity | None = None
    ota: Ota | None = None
    os: Os = msgspec.field(default_factory=Os)
    cloud: Cloud = Cloud()
    metering: Metering = Metering()
    local: Local = Local()
    outbox: Outbox = Outbox()
    metrics: Metrics = Metrics()
    log: Log = Log()
