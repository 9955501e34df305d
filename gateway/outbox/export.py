"""Records in files, for a technician with a USB stick: NDJSON or Parquet. `cloud-bridge import` takes both.

A copy that is cut short must be noticed, also when it is cut between two lines. So an NDJSON export begins with a line
that announces an end mark, and the end mark holds the number of records and the SHA-256 of all lines before it. Parquet
has its own: a footer, and a checksum for each page.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Protocol

import msgspec

from gateway.errors import OutboxError
from gateway.outbox.inspect import Chunk
from gateway.values import Stored
from gateway.wire.messages import RecordClass
from gateway.wire.plain import plain_json

EXPORT_VERSION: Final = 1
_ROW_GROUP_BYTES: Final = 8 * 1024 * 1024
"""What Parquet keeps in memory before it writes."""

_json: Final = msgspec.json.Decoder(msgspec.Raw)


class ExportHead(msgspec.Struct, frozen=True, kw_only=True, tag_field="sluice", tag="export"):
    """The first line."""

    version: int = EXPORT_VERSION
    gateway: str
    at: str


class ExportEnd(msgspec.Struct, frozen=True, kw_only=True, tag_field="sluice", tag="end"):
    """The last line: what must have come before it."""

    records: int
    sha256: str


class ExportedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A line between them: the key of the record, and the record. The blob is base64."""

    gateway: str
    epoch: str
    record_class: RecordClass = msgspec.field(name="class")
    seq: int
    kind: str
    recorded_at_ns: int
    body: msgspec.Raw
    blob: str = ""


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What an export holds."""

    records: int
    damaged: int = 0  # rows that are no records any more, left out


class ExportFile(AbstractContextManager["ExportFile"], Protocol):
    """A file that is being written; it is whole only when the block ends without an error."""

    def write(self, chunk: Chunk, rows: list[Stored]) -> None:
        """Add rows of a chunk."""


def export(chunks: Iterable[Chunk], out: ExportFile, *, progress: Callable[[int], None] | None = None) -> Exported:
    """Write records; `progress` is told the number so far.

    Raises:
        OutboxError: the store cannot be read to its end; the file then says that it is not whole.
    """
    written = damaged = 0
    with out:
        for chunk in chunks:
            good = [row for row in chunk.rows if _is_record(row)]
            out.write(chunk, good)
            written += len(good)
            damaged += len(chunk.rows) - len(good)
            if progress is not None:
                progress(written)
    return Exported(records=written, damaged=damaged)


def _is_record(row: Stored) -> bool:
    """Tell whether a row is still what was stored; a damaged one would spoil the lines beside it."""
    try:
        _json.decode(row.body)
        row.body.decode("utf-8")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


class NdjsonFile:
    """One line of JSON for each record, between a first line and an end mark."""

    def __init__(self, out: BinaryIO, gateway: str, at: str) -> None:
        self._out = out
        self._gateway = gateway
        self._digest = hashlib.sha256()
        self._records = 0
        self._encoder = msgspec.json.Encoder()
        self._line(ExportHead(gateway=gateway, at=at))

    def __enter__(self) -> "NdjsonFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._line(ExportEnd(records=self._records, sha256=self._digest.hexdigest()))

    def write(self, chunk: Chunk, rows: list[Stored]) -> None:
        """Add rows of a chunk."""
        for row in rows:
            self._line(
                ExportedRecord(
                    gateway=self._gateway,
                    epoch=chunk.epoch,
                    record_class=chunk.record_class,
                    seq=row.seq,
                    kind=row.kind,
                    recorded_at_ns=row.recorded_at_ns,
                    body=msgspec.Raw(row.body),
                    blob=base64.b64encode(row.blob).decode("ascii"),
                )
            )
        self._records += len(rows)

    def _line(self, content: msgspec.Struct) -> None:
        line = plain_json(self._encoder.encode(content)) + b"\n"
        self._digest.update(line)
        self._out.write(line)


class ParquetFile:
    """A column for each field; the same names as in what the bridge exports."""

    def __init__(self, file: Path, gateway: str) -> None:
        """Begin the file.

        Raises:
            OutboxError: pyarrow is not installed, or the file cannot be written.
        """
        try:
            import pyarrow as pa  # noqa: PLC0415  # 150 MB on disk, and needed by this alone
            import pyarrow.parquet as pq  # noqa: PLC0415
        except ImportError as error:
            raise OutboxError(
                "Parquet needs pyarrow, which is not installed: pip install 'sluice[parquet]', or export to a "
                "file named .ndjson"
            ) from error
        name = pa.dictionary(pa.int32(), pa.string())
        self._schema = pa.schema(
            [
                ("gateway", name),
                ("epoch", name),
                ("class", name),
                ("seq", pa.int64()),
                ("kind", name),
                ("recorded_at", pa.timestamp("ns", tz="UTC")),
                ("body", pa.string()),
                ("blob", pa.binary()),
            ]
        )
        self._table: Callable[[list[Any]], Any] = lambda columns: pa.Table.from_arrays(
            [pa.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)],
            schema=self._schema,
        )
        self._gateway = gateway
        self._rows: list[tuple[Any, ...]] = []
        self._waiting_bytes = 0
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd", write_page_checksum=True)

    def __enter__(self) -> "ParquetFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What was read before an error is whole: the footer makes it readable, and the error says that there is more.
        self._flush()
        self._writer.close()

    def write(self, chunk: Chunk, rows: list[Stored]) -> None:
        """Add rows of a chunk."""
        for row in rows:
            key = (self._gateway, chunk.epoch, chunk.record_class, row.seq)
            self._rows.append((*key, row.kind, row.recorded_at_ns, row.body.decode("utf-8"), row.blob or None))
            self._waiting_bytes += len(row.body) + len(row.blob) + 100
            if self._waiting_bytes >= _ROW_GROUP_BYTES:
                self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._table([list(column) for column in zip(*self._rows, strict=True)]))
        self._rows, self._waiting_bytes = [], 0
