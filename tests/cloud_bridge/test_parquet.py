"""Parquet files of gateways and of other bridges come in as lines do."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloud_bridge.errors import TransferError
from cloud_bridge.parquet import is_parquet, parquet_lines
from cloud_bridge.store.base import RecordFilter, Store
from cloud_bridge.transfer import export_parquet, read_lines
from gateway.outbox.export import ParquetFile, export
from gateway.outbox.inspect import Chunk
from gateway.values import Stored
from gateway.wire.messages import encode
from tests.simulators.samples import EPOCH, event, evidence

ROWS = 1300


def exported(file: Path, rows: int = ROWS) -> Path:
    """What a gateway writes on a stick: events, and one picture."""
    stored = [Stored(seq, "event", 10**18 + seq, encode(event(f"e{seq}"))) for seq in range(1, rows + 1)]
    picture = Stored(1, "evidence", 10**18, encode(evidence()), b"\xff\xd8\x00picture")
    export([Chunk(EPOCH, "event", stored), Chunk(EPOCH, "bulk", [picture])], ParquetFile(file, "dock"))
    return file


def bring_in(file: Path, store: Store) -> tuple[int, int]:
    inserted = duplicates = 0
    with file.open("rb") as source:
        assert is_parquet(source)
        for lines in parquet_lines(source):
            chunk = read_lines(lines, None)
            assert chunk.bad == ()
            outcome = store.ingest(chunk.intake(1))
            inserted += outcome.inserted
            duplicates += outcome.duplicates
    return inserted, duplicates


def test_a_file_of_a_gateway_is_imported_once_however_often_it_is_given(store: Store, tmp_path: Path) -> None:
    file = exported(tmp_path / "stick.parquet")
    assert bring_in(file, store) == (ROWS + 1, 0)
    assert bring_in(file, store) == (0, ROWS + 1)
    (record,) = store.records(RecordFilter(kind="evidence"), limit=10, with_blobs=True)
    assert record.blob == b"\xff\xd8\x00picture"
    assert record.recorded_at_ns == 10**18


def test_a_file_of_another_bridge_is_imported_too(store: Store, tmp_path: Path) -> None:
    first = tmp_path / "stick.parquet"
    bring_in(exported(first, 5), store)
    second = tmp_path / "bridge.parquet"
    assert export_parquet(store, RecordFilter(), second) == 6
    assert bring_in(second, store) == (0, 6)


def test_bodies_and_times_arrive_to_the_byte_and_the_nanosecond(tmp_path: Path) -> None:
    with exported(tmp_path / "x.parquet", 3).open("rb") as source:
        ((first, *_),) = parquet_lines(source)
    assert encode(event("e1")) in first
    assert json.loads(first)["recorded_at_ns"] == 10**18 + 1


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_copy_that_was_cut_short_is_an_error_that_says_what_to_do(share: float, tmp_path: Path) -> None:
    file = exported(tmp_path / "x.parquet")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with file.open("rb") as source, pytest.raises(TransferError, match="copy it again"):
        list(parquet_lines(source))


def test_flipped_bits_never_become_other_records(tmp_path: Path) -> None:
    file = exported(tmp_path / "x.parquet", 200)
    content = file.read_bytes()
    with file.open("rb") as source:
        right = list(parquet_lines(source))
    noticed = 0
    for at in range(4, len(content), len(content) // 60):
        broken = bytearray(content)
        broken[at] ^= 0x10
        file.write_bytes(broken)
        try:
            with file.open("rb") as source:
                assert list(parquet_lines(source)) == right  # in what nothing depends on, as statistics
        except TransferError:
            noticed += 1
    assert noticed > 20


def test_another_table_is_no_file_of_records(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with (tmp_path / "x.parquet").open("rb") as source, pytest.raises(TransferError, match="no column gateway"):
        list(parquet_lines(source))


def test_ndjson_is_not_taken_for_parquet() -> None:
    source = io.BufferedReader(io.BytesIO(b'{"gateway":"dock"}\n'))
    assert not is_parquet(source)
    assert source.read() == b'{"gateway":"dock"}\n'


def test_the_command_takes_either_and_says_where_a_pipe_will_not_do(tmp_path: Path) -> None:
    file = exported(tmp_path / "x.parquet", 3)
    command = [sys.executable, "-m", "cloud_bridge", "import", "--store", f"sqlite:///{tmp_path}/b.db", "--json"]
    run = subprocess.run([*command, str(file)], check=True, capture_output=True, text=True)
    assert json.loads(run.stdout)["imported"] == 4
    with file.open("rb") as stream:
        piped = subprocess.run(
            f"cat | {' '.join(command)} -", shell=True, check=False, stdin=stream, capture_output=True, text=True
        )
    assert piped.returncode == 1
    assert "name of the file" in piped.stderr
