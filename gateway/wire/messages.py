"""Messages of the wire contract, version 1.

Fields are only ever added, with a default; a new meaning is a new message. Decoders ignore fields they do
not know, so that an older peer reads a newer message. Every type has one frozen sample in `samples/`.
"""

import hashlib
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from gateway.wire.errors import MalformedMessageError
from gateway.wire.histogram import Histogram
from gateway.wire.identity import IDENTITY_MESSAGES, IdentityMessage
from gateway.wire.manifest import ModelManifest

RecordClass = Literal["critical", "event", "measure", "bulk"]
CLASSES: Final[tuple[RecordClass, ...]] = ("critical", "event", "measure", "bulk")
"""Outbox classes, the most urgent first."""

Mode = Literal["A", "B", "C", "D"]

NO_EPOCH: Final = "0" * 16
"""Stands where an acknowledgement is of no epoch. Epochs are drawn from 2^64, so none is expected to be this one."""

INT64_MAX: Final = 2**63 - 1
"""What a database can hold: a larger number from a peer is an error here, not a crash in a store."""

# In Python, `$` alone would accept a line end after the last character.
Epoch = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$(?!\n)")]
Seq = Annotated[int, msgspec.Meta(ge=1, le=INT64_MAX)]
Mark = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]
Size = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]
Fraction = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all messages."""


class Availability(Message, frozen=True, kw_only=True):
    """`availability/gateway`: whether a gateway is there; `offline` is its will, so `at` is then the connect time."""

    state: Literal["online", "stopped", "offline"]
    at: str
    version: str = ""


class ModelRef(Message, frozen=True, kw_only=True):
    """Which model answered: its release and the digest of the very file that ran."""

    name: str
    version: str
    digest: str = ""


class EvidenceLink(Message, frozen=True, kw_only=True):
    """Where the picture or the window behind an event can be found: a record of class `bulk` with this id."""

    evidence_id: str
    content_type: str
    size_bytes: int


class Event(Message, frozen=True, kw_only=True):
    """`event/<pipeline>`, and the body of a record of kind `event`: something worth telling, over its life.

    The same `event_id` is seen first as `new`, then perhaps as `update`, last as `end`.
    `score` is 0..1; for anomaly models it is squashed so that 0.5 is the threshold, and `raw_score` and
    `threshold` hold the model's own units. `box` is [left, top, right, bottom] as fractions of the picture.
    """

    phase: Literal["new", "update", "end"] = msgspec.field(name="type")
    event_id: str
    gateway: str
    pipeline: str
    source: str
    rule: str
    label: str
    score: Fraction
    peak_score: Fraction
    model: ModelRef
    mode: Mode = "A"
    at: str
    started_at: str
    ended_at: str | None = None
    captured_at_ns: Nanoseconds
    revision: int = 0
    count: int = 1
    raw_score: float | None = None
    threshold: float | None = None
    box: tuple[Fraction, Fraction, Fraction, Fraction] | None = None
    zone: str | None = None
    channel: int | None = None
    reason: Literal["rule", "low-confidence"] = "rule"
    evidence: EvidenceLink | None = None


class Spread(Message, frozen=True, kw_only=True):
    """A distribution in five numbers."""

    minimum: float
    mean: float
    maximum: float
    p50: float
    p95: float


class Measure(Message, frozen=True, kw_only=True):
    """`measure/<pipeline>`, and the body of a record of kind `measure`: routine results of one interval, summed up.

    `scores` are the best scores of the inferences, `inputs` statistics of the samples by name (`brightness`,
    `contrast` of pictures; `rms`, `crest` of windows), `latencies_ms` the times from sample to answer, all as
    histograms, so that a fleet can be added up. `errors` counts samples that the model could not answer.
    """

    gateway: str
    pipeline: str
    started_at: str
    ended_at: str
    captured_from_ns: Nanoseconds
    captured_to_ns: Nanoseconds
    inferences: int
    labels: dict[str, int] = {}
    score: Spread | None = None
    latency_ms: Spread | None = None
    dropped: dict[str, int] = {}
    raw_bytes: int = 0
    sent_bytes: int = 0
    model: ModelRef | None = None
    errors: Size = 0
    scores: Histogram | None = None
    latencies_ms: Histogram | None = None
    inputs: dict[str, Histogram] = {}


class Evidence(Message, frozen=True, kw_only=True):
    """Body of a record of kind `evidence`; the bytes travel as the record's blob."""

    evidence_id: str
    event_id: str
    pipeline: str
    content_type: str
    captured_at_ns: Nanoseconds
    width: int | None = None
    height: int | None = None


class PipelineStatus(Message, frozen=True, kw_only=True):
    """`status/<pipeline>`: how a pipeline is doing."""

    pipeline: str
    state: Literal["starting", "running", "degraded", "stopped", "failed"]
    source_state: Literal["opening", "streaming", "lost", "ended", "frozen"]
    mode: Mode = "A"
    at: str
    model: ModelRef | None = None
    backend: str = ""
    inferences: int = 0
    inferences_per_second: float = 0.0
    dropped: dict[str, int] = {}
    open_events: int = 0
    last_error: str | None = None
    waits_for: str = (
        ""  # while it cannot go on: `key` (of its model), `model` (its first), `accelerator`, `device` (of its source)
    )


class Eviction(Message, frozen=True, kw_only=True):
    """Body of a record of kind `eviction`: rows that were given up on purpose, so that a gap is never a mystery."""

    record_class: RecordClass = msgspec.field(name="class")
    first_seq: Seq
    last_seq: Seq
    count: int
    size_bytes: int
    reason: Literal["bytes", "rows", "age", "disk-full"]
    at: str


class Withheld(Message, frozen=True, kw_only=True):
    """Body of a record of kind `withheld`: it stands, under the same number, for a record that could not travel.

    The record itself is kept on the device. `unreadable`: the disk gave back something that is no JSON; `too-large`:
    no packet that the broker takes can hold it. `digest` is `record_digest` of what is kept there. The same record
    always makes the same message, so that sending it again changes nothing.
    """

    kind: str
    reason: Literal["unreadable", "too-large"]
    size_bytes: Size
    digest: str
    detail: str = ""


class Notice(Message, frozen=True, kw_only=True):
    """Body of a record of kind `notice`: something about the gateway itself that the cloud must know.

    Of a store that was put aside (code `store_quarantined`), `epoch` is its name, and `missing` the first and the last
    number of each class in it that no bridge has acknowledged; both as far as they could still be read.
    """

    code: str
    severity: Literal["info", "warning", "error"]
    detail: str
    at: str
    epoch: Epoch | None = None
    missing: dict[RecordClass, tuple[Seq, Seq]] = {}


RecordKind = Literal["event", "measure", "evidence", "eviction", "notice", "withheld"]


class Record(Message, frozen=True, kw_only=True):
    """One outbox row as it travels. Its key is (gateway, epoch, class, seq).

    `body` is the JSON of the message that `kind` names. `blob_bytes` is the length of the binary part,
    which follows the JSON of the batch (see `gateway.wire.batch`).
    """

    seq: Seq
    kind: str
    recorded_at_ns: Nanoseconds
    body: msgspec.Raw
    blob_bytes: Size = 0


PayloadDigest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$(?!\n)")]
"""What `gateway.wire.batch.payload_digest` makes of a payload."""


class Kept(Message, frozen=True, kw_only=True):
    """Numbers whose records a bridge holds as a dead letter: the payload with this digest carried them."""

    first: Seq
    last: Seq
    digest: PayloadDigest


class RecordBatch(Message, frozen=True, kw_only=True, omit_defaults=True):
    """`records/<class>`: consecutive rows of one outbox class, in order.

    `base` is the lowest sequence number the device still answers for: everything below it was acknowledged
    or evicted. A bridge that has lost its database learns from it which gap will never be filled.

    `kept` says what became of numbers that the bridge does not know because it could not read their batch: it has said
    (`Ack.kept`) that it holds that payload as a dead letter, so the device has let the rows go. Mentioned until the
    bridge's mark has passed them, the latest few only; for the others there is `base`.
    """

    epoch: Epoch
    base: Seq
    records: list[Record]
    kept: list[Kept] = []


class Ack(Message, frozen=True, kw_only=True):
    """`ack/<class>`: every row up to and including `mark` is committed in the bridge's store.

    `digest` is `record_digest` of the row that carries the mark, "" where the bridge does not know it: a device that
    has not sent that row itself must compare before it lets rows go, for a clone of it may have. `conflicts` counts
    the records that came under a number of this stream which the bridge holds for a different record; they are kept
    as dead letters. More than 0 means that two devices write under one identity.

    `kept` names payloads of this class (`payload_digest`) that the bridge could not use as a whole, and has committed,
    whole, as dead letters. It can replay them, so for the rows in them the bridge answers now, like for those below a
    mark. Which rows they are only the device knows: a payload that was changed on its way has another digest, names
    nothing there, and is sent again. A message with `kept` is not retained, its `epoch` is `NO_EPOCH` and its `mark` 0.
    """

    epoch: Epoch
    mark: Mark
    at: str
    digest: str = ""
    conflicts: Size = 0
    kept: list[str] = []


class Command(Message, frozen=True, kw_only=True):
    """`cmd/<operation>`: a retained state machine, as in thin-edge.io: init, executing, then one of the two ends."""

    command_id: str
    state: Literal["init", "executing", "successful", "failed"]
    at: str
    reason: str | None = None
    arguments: dict[str, str] = {}
    result: dict[str, str] = {}


AssignmentKind = Literal["model", "os"]


class Assignment(Message, frozen=True, kw_only=True):
    """A model release given to a pipeline, or (`os`) an image of the system given to a device.

    For `os`, `pipeline` is `os_pipeline(compatible)`, which no pipeline can be called, and `model` names what the image
    is compatible with, and its version.
    """

    pipeline: str
    model: ModelRef
    kind: AssignmentKind = "model"


OS_PREFIX: Final = "os:"


def os_pipeline(compatible: str) -> str:
    """Return what stands for the system itself where pipelines are named."""
    return OS_PREFIX + compatible


def kind_of(pipeline: str) -> AssignmentKind:
    """Tell what is assigned under a name."""
    return "os" if pipeline.startswith(OS_PREFIX) else "model"


UpdatePhase = Literal["waiting", "fetching", "checking", "trial", "running", "reverted", "refused", "blocked", "pinned"]


class UpdateState(Message, frozen=True, kw_only=True):
    """How far a pipeline is with the release that it is to run; part of `twin/reported`.

    `waiting` for a link, a budget or a key; `trial` from the swap until it has proved itself; `running` then;
    `reverted` when the device took the release back, for `reason`, and runs `running_model` again; `refused` when it
    was never swapped in; `blocked` when it is asked for again after that; `pinned` when a person on the device keeps
    another. `comparison` holds figures of old and new on the same samples: `samples`, `agreement`, `latency_ratio`, ….

    Of kind `os` it is about the system (see `Assignment`): `checking` while it is installed and until it is restarted,
    `trial` from the start of the new system until it was marked good, `reverted` when the device fell back to the old
    one. `code` is then window, outbox, approval, compatible, version, floor, signature, install, health, no-boot, …
    """

    pipeline: str
    phase: UpdatePhase
    model: ModelRef
    running_model: ModelRef | None = None
    fencing_token: Size = 0
    at: str
    code: str = (
        ""  # for programs: crash-loop, not-a-number, latency, errors, output-drift, input-drift, golden, signature…
    )
    reason: str = ""
    attempt: Size = 0
    fetched_bytes: Size = 0
    full_bytes: Size = 0  # what the compressed full files would have cost
    swap_gap_ms: float | None = None
    comparison: dict[str, float] = {}
    kind: AssignmentKind = "model"


class OsState(Message, frozen=True, kw_only=True):
    """Which system a device runs; part of `twin/reported`. `floor`: older versions are not installed any more."""

    compatible: str
    version: str
    commit: str = ""
    slot: str = ""  # that runs
    floor: str = ""
    good: bool | None = None  # whether the running slot has been marked good; None: not known
    other_slot: str = ""
    other_version: str = ""  # in the other slot, "" if not known
    other_good: bool | None = None
    offered_version: str = ""  # on a medium that is plugged in and waits for a person


class Twin(Message, frozen=True, kw_only=True):
    """`twin/desired` and `twin/reported`: assignments under a version; a lower fencing token is never accepted.

    In `twin/reported`, `version` and `fencing_token` are those of the last desired twin that was accepted,
    `assignments` what runs, and `updates` how far each pipeline is. `os` is reported by devices whose system is updated
    over the air. `awaiting`, in a report alone, names the pipelines that run nothing because no release that they may
    run is on the device: one that is assigned begins there. `refused`, in a report alone, is the code of why the
    desired twin that came last does not count: `token-ahead`, `impossible`, `old-token`, `old-version`, `malformed`, …
    """

    version: int
    fencing_token: int
    at: str
    assignments: list[Assignment] = []
    features: dict[str, bool] = {}
    updates: list[UpdateState] = []
    os: OsState | None = None
    awaiting: list[str] = []
    refused: str = ""


class FetchRequest(Message, frozen=True, kw_only=True):
    """`ota/request`: a device without another way asks the bridge for a part of a file of the repository."""

    request_id: str
    path: Annotated[str, msgspec.Meta(max_length=512)]
    offset: Size
    length: Annotated[int, msgspec.Meta(ge=1, le=4 * 1024 * 1024)]


class FetchReply(Message, frozen=True, kw_only=True):
    """`ota/reply`: the part, or why not. The bytes follow the JSON in a frame, as in `records`."""

    request_id: str
    path: str
    offset: Size
    length: Size = 0
    total: Size = 0  # bytes of the whole file
    error: str = ""  # `not-found`, `too-large`, `unavailable`


BODIES: Final[dict[str, type[Message]]] = {
    "event": Event,
    "measure": Measure,
    "evidence": Evidence,
    "eviction": Eviction,
    "notice": Notice,
    "withheld": Withheld,
}
"""The message type behind each kind of record."""

MESSAGES: Final[dict[str, type[Message] | type[ModelManifest] | type[IdentityMessage]]] = {
    "availability": Availability,
    "status": PipelineStatus,
    "event": Event,
    "measure": Measure,
    "evidence": Evidence,
    "eviction": Eviction,
    "notice": Notice,
    "withheld": Withheld,
    "records": RecordBatch,
    "ack": Ack,
    "cmd": Command,
    "twin": Twin,
    "ota-request": FetchRequest,
    "ota-reply": FetchReply,
    "manifest": ModelManifest,
    **IDENTITY_MESSAGES,
}
"""Every message of the contract, by the name under which its schema and its sample are published."""

M = TypeVar("M", bound=msgspec.Struct)

_decoders: dict[type[msgspec.Struct], msgspec.json.Decoder[msgspec.Struct]] = {}
_encoder: Final = msgspec.json.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """Encode a message as JSON."""
    return _encoder.encode(message)


def decode(payload: bytes | memoryview, kind: type[M]) -> M:
    """Decode the JSON of one message.

    Raises:
        MalformedMessageError: not UTF-8, not JSON, or not a message of this kind.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    try:
        return decoder.decode(payload)  # type: ignore[return-value]  # the decoder was made for this kind
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessageError(f"{kind.__name__}: {error}") from error


def record_digest(kind: str, body: bytes, blob: bytes = b"") -> str:
    """Name the content of a record: the first 32 hexadecimal digits of SHA-256 over kind, body and blob.

    A NUL ends the kind, and the length of the body (8 bytes, big endian) stands before it, so that no two records
    make the same text.
    """
    digest = hashlib.sha256(kind.encode("utf-8", "surrogatepass") + b"\0" + len(body).to_bytes(8, "big"))
    digest.update(body)
    digest.update(blob)
    return digest.hexdigest()[:32]


def json_schema(name: str) -> dict[str, object]:
    """Return the JSON schema (draft 2020-12) of a message of `MESSAGES`."""
    schema = msgspec.json.schema(MESSAGES[name])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"sluice/v1 {name}", **schema}
