"""Records in files: NDJSON with an end mark, and Parquet."""

import base64
import hashlib
import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gateway.errors import OutboxError
from gateway.outbox.export import Exported, NdjsonFile, ParquetFile, export
from gateway.outbox.inspect import chunks_of
from gateway.outbox.quarantine import quarantined_name
from gateway.outbox.store import Outbox
from gateway.wire.messages import CLASSES, RecordClass, encode
from tests.gateway.outbox.outbox_kit import event, opened, picture

AT = "2026-11-21T12:00:00.000Z"


def ndjson(file: Path, *classes: RecordClass, **options: Any) -> tuple[Exported, list[dict[str, Any]]]:
    out = io.BytesIO()
    done = export(chunks_of(file, classes or CLASSES), NdjsonFile(out, "gw-1", AT), **options)
    return done, [json.loads(line) for line in out.getvalue().split(b"\n") if line]


def test_an_export_has_one_line_for_each_record_with_its_key(file: Path) -> None:
    entries = [event(1), picture(2, 5000), event(3, "critical")]
    with opened(file) as outbox:
        outbox.put(entries)
        epoch = outbox.epoch
    done, (head, *lines, end) = ndjson(file)
    assert done == Exported(records=3)
    assert (head["sluice"], head["gateway"], head["at"], end["sluice"]) == ("export", "gw-1", AT, "end")
    assert [(line["gateway"], line["epoch"], line["class"], line["seq"]) for line in lines] == [
        ("gw-1", epoch, "critical", 1),
        ("gw-1", epoch, "event", 1),
        ("gw-1", epoch, "bulk", 1),
    ]
    assert lines[1]["body"] == json.loads(encode(entries[0].body))
    assert base64.b64decode(lines[2]["blob"]) == entries[1].blob


def test_the_end_mark_holds_the_number_of_records_and_the_checksum_of_all_lines_before_it(file: Path) -> None:
    with opened(file) as outbox:
        outbox.put([event(n) for n in range(3)])
    out = io.BytesIO()
    export(chunks_of(file), NdjsonFile(out, "gw-1", AT))
    *before, last = out.getvalue().splitlines(keepends=True)
    assert json.loads(last) == {
        "sluice": "end",
        "records": 3,
        "sha256": hashlib.sha256(b"".join(before)).hexdigest(),
    }


def test_an_export_of_some_classes_leaves_the_others_out(outbox: Outbox, file: Path) -> None:
    outbox.put([event(n) for n in range(450)])
    outbox.put([picture(1, 10)])
    steps: list[int] = []
    done, _ = ndjson(file, "event", progress=steps.append)
    assert done.records == 450
    assert steps == [200, 400, 450]


def test_an_export_since_a_moment_leaves_out_what_is_older(outbox: Outbox, file: Path) -> None:
    outbox.put([event(n) for n in range(300)])
    since_ns = event(250).recorded_at_ns
    rows = [row for chunk in chunks_of(file, since_ns=since_ns) for row in chunk.rows]
    assert [row.seq for row in rows] == list(range(251, 301))


def test_a_quarantined_store_is_exported_as_far_as_it_is_readable_and_says_that_it_is_not_whole(file: Path) -> None:
    with opened(file) as outbox:
        outbox.put([picture(n, 3000) for n in range(400)])
    with file.open("r+b") as stream:
        stream.seek(300 * 4096)
        stream.write(b"\xee" * 4096 * 20)
    file.rename(quarantined_name(file))
    out = io.BytesIO()
    with pytest.raises(OutboxError):
        export(chunks_of(quarantined_name(file)), NdjsonFile(out, "gw-1", AT))
    lines = [json.loads(line) for line in out.getvalue().split(b"\n") if line]
    assert len(lines) > 200
    assert "sluice" not in lines[-1]


def test_a_row_that_the_disk_has_damaged_is_left_out_and_counted(file: Path) -> None:
    with opened(file) as outbox:
        outbox.put([event(n) for n in range(3)])
    with sqlite3.connect(file) as db:
        (table,) = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE name LIKE '%event%'")][:1]
        db.execute(f"UPDATE {table} SET body = ? WHERE seq = 2", (b'{"broken": \n',))
    done, (_, *lines, _) = ndjson(file)
    assert done == Exported(records=2, damaged=1)
    assert [line["seq"] for line in lines] == [1, 3]


def test_parquet_holds_the_same_records_in_columns(file: Path, tmp_path: Path) -> None:
    entries = [event(1), event(2), picture(3, 5000)]
    with opened(file) as outbox:
        outbox.put(entries)
    target = tmp_path / "records.parquet"
    assert export(chunks_of(file), ParquetFile(target, "gw-1")) == Exported(records=3)
    table = pq.read_table(target)
    assert table.column("seq").to_pylist() == [1, 2, 1]
    assert table.column("class").to_pylist() == ["event", "event", "bulk"]
    assert table.column("gateway").to_pylist() == ["gw-1"] * 3
    assert table.column("body")[0].as_py().encode() == encode(entries[0].body)
    assert table.column("blob").to_pylist() == [None, None, entries[2].blob]
    assert table.column("recorded_at").cast("int64").to_pylist() == [each.recorded_at_ns for each in entries]


def test_parquet_memory_is_bounded_by_row_groups(file: Path, tmp_path: Path) -> None:
    with opened(file) as outbox:
        outbox.put([picture(n, 100_000) for n in range(150)])
    target = tmp_path / "records.parquet"
    assert export(chunks_of(file), ParquetFile(target, "gw-1")).records == 150
    assert pq.ParquetFile(target).metadata.num_row_groups >= 2


def test_without_pyarrow_the_package_and_the_way_out_are_named(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from gateway.outbox.export import ParquetFile\n"
        f"ParquetFile(Path({str(tmp_path / 'x.parquet')!r}), 'gw')\n"
    )
    run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert "pip install 'sluice[parquet]'" in run.stderr
    assert ".ndjson" in run.stderr
