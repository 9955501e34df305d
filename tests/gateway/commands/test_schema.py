"""`gateway schema`."""

import json
from pathlib import Path

from click.testing import CliRunner

from gateway.cli import main
from gateway.wire.messages import MESSAGES


def test_without_a_name_the_messages_are_listed() -> None:
    assert CliRunner().invoke(main, ["schema"]).output.split() == list(MESSAGES)


def test_a_schema_is_printed() -> None:
    assert json.loads(CliRunner().invoke(main, ["schema", "event"]).output)["title"] == "sluice/v1 event"


def test_all_schemas_are_printed_as_one_object() -> None:
    assert list(json.loads(CliRunner().invoke(main, ["schema", "--all"]).output)) == list(MESSAGES)


def test_schemas_are_written_one_a_file(tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["schema", "--out", str(tmp_path / "new")]).exit_code == 0
    assert len(list((tmp_path / "new").glob("*.schema.json"))) == len(MESSAGES)


def test_the_sample_is_printed() -> None:
    assert json.loads(CliRunner().invoke(main, ["schema", "ack", "--sample"]).output)["mark"] == 42


def test_an_unknown_message_is_wrong_usage() -> None:
    assert CliRunner().invoke(main, ["schema", "gossip"]).exit_code == 2
    assert CliRunner().invoke(main, ["schema", "--sample"]).exit_code == 2
