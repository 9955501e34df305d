"""Logs are for people in a terminal, JSON elsewhere, and hold no secrets."""

import io
import json
import logging
import os
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway.config import Log
from gateway.logs import configure, is_journal, redact

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().split("\n") if line]


def test_outside_a_terminal_each_line_is_json() -> None:
    out = io.StringIO()
    configure(Log(), stream=out, environment={})
    structlog.get_logger().info("gateway_started", pipelines=3)
    (line,) = lines(out)
    assert line["event"] == "gateway_started"
    assert line["pipelines"] == 3
    assert line["level"] == "info"
    assert line["timestamp"].endswith("Z")


def test_for_people_it_is_no_json() -> None:
    out = io.StringIO()
    configure(Log(format="console"), stream=out, environment={})
    structlog.get_logger().info("gateway_started", pipelines=3)
    assert "gateway_started" in out.getvalue()
    assert not out.getvalue().startswith("{")


@pytest.mark.parametrize("form", ["console", "json"])
def test_secrets_do_not_reach_the_log(form: Any) -> None:
    out = io.StringIO()
    configure(Log(format=form), stream=out, environment={})
    log = structlog.get_logger()
    log.info("a", password=SECRET, nested={"api_key": SECRET, "list": [{"token": SECRET}]})
    log.info("b", url=f"mqtts://me:{SECRET}@broker:8883/", urls=[f"rtsp://me:{SECRET}@cam"])
    log.warning("c", error=f"cannot open rtsp://me:{SECRET}@cam/1")
    log.warning("c", error=f"camera http://cam/s?token={SECRET}&{SECRET} does not answer")
    logging.getLogger("library").warning("connecting to mqtt://me:%s@h", SECRET, extra={"secret": SECRET})
    try:
        raise OSError(f"no route to mqtt://me:{SECRET}@h")
    except OSError:
        log.exception("d")
    told = out.getvalue()
    assert "mqtt://[redacted]@h" in told
    assert "Traceback" in told
    assert SECRET not in told


def test_names_of_secret_files_and_fencing_tokens_are_no_secrets() -> None:
    event = redact(None, "info", {"password_file": "/run/x", "fencing_token": 3, "password": "", "n": 1})
    assert event == {"password_file": "/run/x", "fencing_token": 3, "password": "", "n": 1}


def test_redaction_changes_no_object_of_the_caller() -> None:
    mine = {"token": SECRET}
    assert redact(None, "info", {"mine": mine})["mine"] == {"token": "[redacted]"}
    assert mine == {"token": SECRET}


def test_the_level_holds_for_libraries_too() -> None:
    out = io.StringIO()
    configure(Log(level="warning"), stream=out, environment={})
    structlog.get_logger().info("quiet")
    logging.getLogger("library").info("quiet")
    structlog.get_logger().warning("loud")
    logging.getLogger("library").warning("louder")
    assert [line["event"] for line in lines(out)] == ["loud", "louder"]


def test_warnings_are_logged() -> None:
    out = io.StringIO()
    configure(Log(), stream=out, environment={})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old", UserWarning, stacklevel=1)
    assert "old" in lines(out)[0]["event"]


def test_what_json_does_not_know_becomes_text() -> None:
    out = io.StringIO()
    configure(Log(), stream=out, environment={})
    structlog.get_logger().info("a", path=Path("/x"), error=OSError("gone"))
    assert lines(out)[0]["path"] == "/x"


def test_lines_in_the_journal_carry_their_priority(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w") as stream:
        status = os.fstat(stream.fileno())
        environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_journal(stream, environment)
        assert not is_journal(stream, {"JOURNAL_STREAM": "1:1"})
        configure(Log(), stream=stream, environment=environment)
        structlog.get_logger().error("broken")
        structlog.get_logger().info("fine")
    first, second = (tmp_path / "journal").read_text().splitlines()
    assert first.startswith("<3>{")
    assert second.startswith("<6>{")


@pytest.mark.parametrize("form", ["console", "json"])
def test_what_others_have_sent_does_nothing_to_the_terminal_and_starts_no_line(form: Any) -> None:
    out = io.StringIO()
    configure(Log(format=form), stream=out, environment={})
    structlog.get_logger().info(
        "mqtt_subscription_taken_back", topic="leaf/\x1b[2J\x9b\x85\u2028\x7f\nfaked", many=["\x9b"]
    )
    told = out.getvalue()
    assert len(told.splitlines()) == 1
    assert not any(unicodedata.category(each) == "Cc" for each in told.rstrip("\n"))
    assert "x9b" in told or "u009b" in told
