"""Rollups as a Parquet file, for analysis elsewhere."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cloud_bridge.errors import TransferError
from cloud_bridge.store.base import Reader, RollupFilter, RollupPlace
from cloud_bridge.values import Rollup

_PAGE: Final = 5000
_SPREADS: Final = ("score", "level", "latency_ms")
_COUNTS: Final = ("events", "updates", "measures", "inferences", "findings", "dropped", "raw_bytes", "sent_bytes")


def all_rollups(store: Reader, wanted: RollupFilter) -> Iterator[list[Rollup]]:
    """Read all rollups that are wanted, page by page, the latest first."""
    while page := store.rollups(wanted, limit=_PAGE):
        yield page
        last = page[-1]
        wanted = replace(wanted, before=RollupPlace(last.start_s, last.gateway, last.pipeline, last.label))


def export_rollups(store: Reader, wanted: RollupFilter, file: Path) -> int:
    """Write rollups with a column for each figure; return how many.

    `start` is the beginning of the hour or day (UTC); distributions are `_count`, `_min`, `_mean` and `_max`.

    Raises:
        TransferError: pyarrow is not installed, or the file cannot be written.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415  # large, and needed by this alone
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise TransferError("Parquet needs pyarrow: pip install 'sluice[cloud]'") from error
    names = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema(
        [
            ("start", pa.timestamp("ms", tz="UTC")),
            ("seconds", pa.int32()),
            *((name, names) for name in ("gateway", "pipeline", "label")),
            *((name, pa.int64()) for name in _COUNTS),
            *((f"{name}_count", pa.int64()) for name in _SPREADS),
            *((f"{name}_{part}", pa.float64()) for name in _SPREADS for part in ("min", "mean", "max")),
        ]
    )
    count = 0
    try:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for page in all_rollups(store, wanted):
                columns = zip(*(_row(one) for one in page), strict=True)
                arrays = [pa.array(values, kind.type) for values, kind in zip(columns, schema, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                count += len(page)
    except OSError as error:
        raise TransferError(f"{file}: {error}") from error
    return count


def _row(one: Rollup) -> tuple[Any, ...]:
    spreads = (one.score, one.level, one.latency_ms)
    return (
        one.start_s * 1000,
        one.grain_seconds,
        one.gateway,
        one.pipeline,
        one.label,
        *(getattr(one, name) for name in _COUNTS),
        *(spread.size for spread in spreads),
        *(value for spread in spreads for value in (spread.minimum, spread.mean, spread.maximum)),
    )
