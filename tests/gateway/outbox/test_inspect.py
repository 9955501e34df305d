"""Looking into a store from outside."""

import base64
import io
import json
from pathlib import Path

import pytest

from gateway.errors import OutboxError
from gateway.outbox.damage import quarantined_name
from gateway.outbox.inspect import export_ndjson, status
from gateway.outbox.store import Outbox
from gateway.wire.messages import encode
from tests.gateway.outbox.outbox_kit import event, opened, picture, settings
from tests.simulators.settable_clocks import SettableClocks


def test_a_running_store_can_be_looked_at(outbox: Outbox, file: Path) -> None:
    outbox.put([event(n) for n in range(5)])
    found = status(file)
    assert (found.epoch, found.classes["event"].rows, found.classes["event"].highest) == (outbox.epoch, 5, 5)
    assert found.classes["event"].disk_bytes == outbox.stats().classes["event"].disk_bytes
    outbox.put([event(6)])
    assert status(file).classes["event"].rows == 6


def test_a_closed_store_tells_the_age_of_its_rows(file: Path) -> None:
    machine = SettableClocks()
    outbox = Outbox.open(file, settings(), clocks=machine.clocks())
    outbox.put([event(1)])
    machine.pass_seconds(100)
    outbox.close()
    machine.pass_seconds(20)
    assert status(file, clocks=machine.clocks()).classes["event"].oldest_age_seconds == 120
    assert status(file).classes["bulk"].oldest_age_seconds is None


def test_an_export_has_one_line_for_each_record_with_its_key(file: Path) -> None:
    entries = [event(1), picture(2, 5000), event(3, "critical")]
    with opened(file) as outbox:
        outbox.put(entries)
        epoch = outbox.epoch
    out = io.BytesIO()
    assert export_ndjson(file, out, gateway="gw-1") == 3
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["gateway"], line["epoch"], line["class"], line["seq"]) for line in lines] == [
        ("gw-1", epoch, "critical", 1),
        ("gw-1", epoch, "event", 1),
        ("gw-1", epoch, "bulk", 1),
    ]
    assert lines[1]["body"] == json.loads(encode(entries[0].body))
    assert base64.b64decode(lines[2]["blob"]) == entries[1].blob


def test_an_export_of_some_classes_leaves_the_others_out(outbox: Outbox, file: Path) -> None:
    outbox.put([event(n) for n in range(450)])
    outbox.put([picture(1, 10)])
    out = io.BytesIO()
    steps: list[int] = []
    assert export_ndjson(file, out, ["event"], progress=steps.append) == 450
    assert steps == [200, 400, 450]


def test_a_quarantined_store_can_be_exported_as_far_as_it_is_readable(file: Path) -> None:
    with opened(file) as outbox:
        outbox.put([picture(n, 3000) for n in range(400)])
    with file.open("r+b") as stream:
        stream.seek(300 * 4096)
        stream.write(b"\xee" * 4096 * 20)
    file.rename(quarantined_name(file))
    out = io.BytesIO()
    with pytest.raises(OutboxError):
        export_ndjson(quarantined_name(file), out)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(lines) >= 200


def test_what_is_no_store_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match="no such file"):
        status(tmp_path / "absent.db")
    (tmp_path / "text.db").write_text("hello " * 100)
    with pytest.raises(OutboxError, match="not a SQLite database"):
        status(tmp_path / "text.db")
