"""Records to and from files.

One line of NDJSON is one record: `gateway`, `epoch`, `class`, `seq`, `kind`, `recorded_at_ns`, `body` (JSON), and
`blob` (base64) where it has one. `gateway outbox export` writes the same lines, for a technician with a USB stick;
importing them twice, or what has come over the air as well, changes nothing. A seal (`cloud_bridge.seal`) stands around
them.
"""

import binascii
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import IO, Annotated, Any, Final

import msgspec

from cloud_bridge.errors import TransferError
from cloud_bridge.ingest.decoding import MAX_NUMBER, arrival_of
from cloud_bridge.seal import SealedFile
from cloud_bridge.store.base import Reader, RecordFilter
from cloud_bridge.values import Arrival, DeadLetter, Intake, StoredRecord, StreamKey
from gateway.wire.errors import MalformedMessageError
from gateway.wire.messages import Epoch, Record, RecordClass
from gateway.wire.plain import exact_json, plain_json

CHUNK_RECORDS: Final = 500
CHUNK_BYTES: Final = 8 * 1024 * 1024
"""What is imported at once, in one question to a running bridge: pictures are large, and none has to be alone."""
MAX_LINE_BYTES: Final = 32 * 1024 * 1024
_PAGES: Final = (10, 500)
"""Records that are read at once: the first time, and at most."""
_PAGE_BYTES: Final = 8 * 1024 * 1024

GatewayName = Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,63}$")]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an exported file; unknown fields are left alone."""

    epoch: Epoch
    record_class: RecordClass = msgspec.field(name="class")
    seq: Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)]
    kind: str
    recorded_at_ns: int
    body: msgspec.Raw
    blob: str | None = None
    gateway: GatewayName | None = None


_decoder: Final = msgspec.json.Decoder(Line)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Lines read from a file, ready to be written; `bad` names those that could not be used."""

    arrivals: tuple[Arrival, ...]
    notes: tuple[DeadLetter, ...]
    lines: int
    bad: tuple[str, ...]

    def intake(self, received_at_ns: int) -> Intake:
        """Make an intake of it. The gateways have not spoken; a person has."""
        return Intake(received_at_ns, self.arrivals, dead_letters=self.notes)


def read_lines(lines: Iterable[bytes], gateway: str | None, *, first_line: int = 1) -> Chunk:
    """Decode some lines; `gateway` is for lines that do not name theirs."""
    found: dict[StreamKey, list[dict[int, tuple[Record, bytes]]]] = {}
    bad: list[str] = []
    number = first_line - 1
    for number, line in enumerate(lines, start=first_line):
        if not line.strip():
            continue
        try:
            key, record, blob = _read(line, gateway)
        except (MalformedMessageError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            bad.append(f"line {number}: {error}")
            continue
        layers = found.setdefault(key, [])
        # A number that comes again goes into another arrival: whether it is the same record the store finds out.
        layer = next((layer for layer in layers if record.seq not in layer), None)
        if layer is None:
            layers.append(layer := {})
        layer[record.seq] = (record, blob)
    arrivals, notes = [], []
    for key, by_seq in ((key, layer) for key, layers in found.items() for layer in layers):
        pairs = [by_seq[seq] for seq in sorted(by_seq)]
        # A file says nothing about what the device still holds, so the base stays 1.
        arrival, noted = arrival_of(key, 1, [r for r, _ in pairs], [b for _, b in pairs], "import")
        arrivals.append(arrival)
        notes.extend(noted)
    return Chunk(tuple(arrivals), tuple(notes), number - first_line + 1, tuple(bad))


def chunks(file: IO[bytes]) -> Iterator[list[bytes]]:
    """Cut a file into lists of lines, as `in_chunks` does.

    Raises:
        TransferError: a line is longer than any record.
    """
    return in_chunks(_lines(file))


EMPTY: Final = "empty, as of a medium that was pulled out too early: copy the file again"
_FOREIGN: Final = (
    (b"\x1f\x8b", "packed with gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd: unpack it first"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"SQLite format 3\0", "a database: `gateway outbox export --file` makes a file of records of an outbox"),
    (
        b"\xef\xbb\xbf",
        "changed by an editor, which put a byte-order mark in front: copy the file as it was written",
    ),
    (b"\xff\xfe", "changed to UTF-16: copy the file as it was written"),
    (b"\xfe\xff", "changed to UTF-16: copy the file as it was written"),
    (b"\0" * 8, "zeros at its beginning, as where the power went during a copy: copy the file again"),
)


def foreign_to(source: IO[bytes]) -> str:
    """Say what a stream is if it cannot be one of records, and what to do; "" if it may be. Nothing is consumed."""
    if not isinstance(source, BufferedReader):
        return ""
    head = source.peek(16)
    if not head:
        return EMPTY
    return next((words for beginning, words in _FOREIGN if head.startswith(beginning)), "")


def in_chunks(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Gather lines: at most `CHUNK_RECORDS`, and `CHUNK_BYTES` unless one alone is more."""
    chunk: list[bytes] = []
    size = 0
    for line in lines:
        if chunk and (len(chunk) == CHUNK_RECORDS or size + len(line) > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(line)
        size += len(line)
    if chunk:
        yield chunk


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise TransferError(f"a line is longer than {MAX_LINE_BYTES} bytes; this is no file of records")
        yield line


def _read(line: bytes, gateway: str | None) -> tuple[StreamKey, Record, bytes]:
    decoded = _decoder.decode(exact_json(line))  # what digests are made of
    name = decoded.gateway or gateway
    if name is None:
        raise MalformedMessageError("names no gateway; give --gateway")
    if abs(decoded.recorded_at_ns) > 2**63 - 1:
        raise MalformedMessageError("recorded_at_ns is beyond 64 bits")
    try:
        blob = b64decode(decoded.blob or "", validate=True)
    except binascii.Error as error:
        raise MalformedMessageError(f"blob: {error}") from error
    record = Record(
        seq=decoded.seq,
        kind=decoded.kind,
        recorded_at_ns=decoded.recorded_at_ns,
        body=decoded.body,
        blob_bytes=len(blob),
    )
    return StreamKey(name, decoded.epoch, decoded.record_class), record, blob


def as_line(record: StoredRecord) -> bytes:
    """Write a record as a line, without the line end; nothing in it acts on a terminal, see `gateway.wire.plain`."""
    fields: dict[str, Any] = {
        "gateway": record.key.gateway,
        "epoch": record.key.epoch,
        "class": record.key.record_class,
        "seq": record.seq,
        "kind": record.kind,
        "recorded_at_ns": record.recorded_at_ns,
        "received_at_ns": record.received_at_ns,
        "pipeline": record.pipeline,
        "body": msgspec.Raw(record.body),
    }
    if record.blob:
        fields["blob"] = b64encode(record.blob).decode("ascii")
    return plain_json(msgspec.json.encode(fields))


def everything(store: Reader, wanted: RecordFilter) -> Iterator[list[StoredRecord]]:
    """Read all records that are wanted, page by page, in the order of receipt."""
    after_id = wanted.after_id or 0
    limit, most = _PAGES
    while page := store.records(replace(wanted, after_id=after_id), limit=limit, with_blobs=True):
        yield page
        after_id = page[-1].id
        # As many as fit into the memory of a small machine, if those that follow are like these.
        size = sum(len(record.body) + len(record.blob) for record in page)
        limit = max(1, min(most, 2 * len(page), _PAGE_BYTES * len(page) // max(size, 1)))


def export_ndjson(store: Reader, wanted: RecordFilter, out: IO[bytes], *, at: str) -> int:
    """Write records as lines under a seal that says when (`at`, RFC 3339); return how many."""
    file = SealedFile(out, at)
    for page in everything(store, wanted):
        for record in page:
            file.write(as_line(record))
    file.close()
    return file.records


def _parquet_row(record: StoredRecord) -> tuple[Any, ...]:
    body = record.body.decode("utf-8", "replace")
    times = (record.recorded_at_ns, record.received_at_ns)
    return (*record.key, record.seq, record.kind, record.pipeline, *times, body, record.blob or None)


def export_parquet(store: Reader, wanted: RecordFilter, file: Path) -> int:
    """Write records as a Parquet file with a column for each field; return how many.

    Raises:
        TransferError: pyarrow is not installed, or the file cannot be written.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415  # large, and needed by this alone
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise TransferError("Parquet needs pyarrow: pip install 'sluice[cloud]'") from error
    columns = [
        ("gateway", pa.dictionary(pa.int32(), pa.string())),
        ("epoch", pa.dictionary(pa.int32(), pa.string())),
        ("class", pa.dictionary(pa.int32(), pa.string())),
        ("seq", pa.int64()),
        ("kind", pa.dictionary(pa.int32(), pa.string())),
        ("pipeline", pa.dictionary(pa.int32(), pa.string())),
        ("recorded_at", pa.timestamp("ns", tz="UTC")),
        ("received_at", pa.timestamp("ns", tz="UTC")),
        ("body", pa.string()),
        ("blob", pa.binary()),
    ]
    schema = pa.schema(columns)
    count = 0
    try:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for page in everything(store, wanted):
                rows = [_parquet_row(record) for record in page]
                arrays = [
                    pa.array(values, kind) for values, (_, kind) in zip(zip(*rows, strict=True), columns, strict=True)
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                count += len(page)
    except OSError as error:
        raise TransferError(f"{file}: {error}") from error
    return count
