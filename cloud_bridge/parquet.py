"""Records from Parquet files, as lines of NDJSON: what is imported takes one way, whatever it came in."""

from base64 import b64encode
from collections.abc import Iterator
from io import BufferedReader
from typing import IO, Any, Final

import msgspec

from cloud_bridge.errors import TransferError
from cloud_bridge.transfer import in_chunks

_MAGIC: Final = b"PAR1"
_NEEDED: Final = ("gateway", "epoch", "class", "seq", "kind", "recorded_at", "body")
_OPTIONAL: Final = ("blob",)
_AT_ONCE: Final = 50
"""Rows that are unpacked at once; each may hold a picture."""


def is_parquet(source: IO[bytes]) -> bool:
    """Tell whether a stream begins as a Parquet file does; nothing of it is consumed."""
    return isinstance(source, BufferedReader) and source.peek(len(_MAGIC))[: len(_MAGIC)] == _MAGIC


def parquet_lines(source: IO[bytes]) -> Iterator[list[bytes]]:
    """Yield the records of a Parquet file of `gateway outbox export` or `export`, as lines.

    Raises:
        TransferError: pyarrow is not installed, the file was cut short or damaged, or has other columns.
    """
    return in_chunks(_lines_of(source))


def _lines_of(source: IO[bytes]) -> Iterator[bytes]:
    try:
        import pyarrow as pa  # noqa: PLC0415  # large, and needed by Parquet alone
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise TransferError("Parquet needs pyarrow: pip install 'sluice[cloud]'") from error
    name = getattr(source, "name", "the file")
    if not source.seekable():
        raise TransferError("Parquet cannot be read from a pipe; give the name of the file")
    encoder = msgspec.json.Encoder()
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            missing = [column for column in _NEEDED if column not in file.schema_arrow.names]
            if missing:
                raise TransferError(f"{name}: no column {', '.join(missing)}; this is no file of records")
            columns = [column for column in (*_NEEDED, *_OPTIONAL) if column in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=_AT_ONCE, columns=columns):
                times = batch.column("recorded_at").cast(pa.timestamp("ns", tz="UTC")).cast(pa.int64())
                rows = batch.drop_columns(["recorded_at"]).to_pylist()
                for row, at_ns in zip(rows, times.to_pylist(), strict=True):
                    yield encoder.encode(_line(row, at_ns)) + b"\n"
    except (pa.ArrowException, OSError) as error:
        raise TransferError(
            f"{name}: cannot be read to its end ({error}): the copy was cut short or damaged; copy it again from the "
            "gateway, or export NDJSON there, of which the whole lines can be used"
        ) from error


def _line(row: dict[str, Any], recorded_at_ns: int) -> dict[str, Any]:
    line: dict[str, Any] = {
        "gateway": row["gateway"],
        "epoch": row["epoch"],
        "class": row["class"],
        "seq": row["seq"],
        "kind": row["kind"],
        "recorded_at_ns": recorded_at_ns,
        "body": msgspec.Raw(row["body"].encode()),
    }
    if row.get("blob"):
        line["blob"] = b64encode(row["blob"]).decode("ascii")
    return line
