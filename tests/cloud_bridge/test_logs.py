import io
import json
import logging
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from cloud_bridge.config import Log
from cloud_bridge.logs import configure


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def test_lines_are_json_without_credentials() -> None:
    out = io.StringIO()
    configure(Log(), out)
    structlog.get_logger().info("connected", url="postgresql://me:secret@db/x")
    logging.getLogger("other").warning("see %s", "mqtts://me:secret@broker")
    first, second = (json.loads(line) for line in out.getvalue().split("\n") if line)
    assert (first["event"], first["level"], first["url"]) == ("connected", "info", "postgresql://[redacted]@db/x")
    assert second["event"] == "see mqtts://[redacted]@broker"


def test_the_level_holds_and_chatty_libraries_are_quiet() -> None:
    out = io.StringIO()
    configure(Log(level="warning"), out)
    structlog.get_logger().info("unheard")
    logging.getLogger("psycopg.pool").warning("unheard")
    assert out.getvalue() == ""


def test_people_get_lines_for_people() -> None:
    out = io.StringIO()
    configure(Log(format="console"), out)
    structlog.get_logger().info("connected")
    assert "connected" in out.getvalue()
    assert not out.getvalue().startswith("{")


@pytest.mark.parametrize("form", ["console", "json"])
def test_what_devices_have_sent_does_nothing_to_the_terminal_and_starts_no_line(form: Any) -> None:
    out = io.StringIO()
    configure(Log(format=form), out)
    structlog.get_logger().info("dead_letter", topic="sluice/\x1b[2J\x9b\x85\u2028\nfaked", many=["\x9b"])
    told = out.getvalue()
    assert len(told.splitlines()) == 1
    assert not any(unicodedata.category(each) == "Cc" for each in told.rstrip("\n"))
    assert "x9b" in told or "u009b" in told
