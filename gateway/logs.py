"""Sets logging up: lines for people in a terminal, JSON elsewhere, and no secrets in either."""

import logging
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from gateway.config import Log
from gateway.shown import shown
from gateway.wire.plain import plain, plain_json, plain_lines

_SECRET_KEY: Final = re.compile(
    r"pass(word|wd|phrase)|secret|token|api_?key|private_?key|credential|authorization", re.I
)
_SAFE_KEY: Final = re.compile(r"_(file|path|dir|count|seconds|id)$|^(fencing|deployment)_token$", re.I)
_REDACTED: Final = "[redacted]"
_MAX_DEPTH: Final = 6

_JOURNAL_LEVELS: Final = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
"""sd-daemon(3): a line that begins with `<3>` has the priority `err` in the journal."""


def configure(settings: Log, *, stream: TextIO | None = None, environment: Mapping[str, str] = os.environ) -> None:
    """Route structlog, the standard library's logging and warnings to one stream (default: stderr)."""
    out = stream if stream is not None else sys.stderr
    journal = is_journal(out, environment)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    human = settings.format == "console" or (settings.format == "auto" and out.isatty())
    # Plain tracebacks: the rich ones show local variables, and with them whatever secret a function held.
    traceback = structlog.dev.plain_traceback
    console = structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=traceback)
    render: list[Processor] = [
        structlog.processors.format_exc_info,
        redact,
        *((harmless, console) if human else (_json,)),
    ]
    if journal and not human:
        render.append(_with_priority)
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(), redact],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level.upper())
    for library in ("httpx", "httpcore"):  # a line for each request
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def configure_for_command(settings: Log) -> None:
    """Have a command that speaks for itself log nothing but warnings and errors, as far as the settings want them."""
    configure(settings if settings.level == "error" else Log(level="warning", format=settings.format))


def is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Tell whether a stream goes to the journal: systemd names its device and inode (systemd.exec(5))."""
    named = environment.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Blank out values of keys that sound secret, and what addresses carry besides the way, at any depth."""
    return _clean_mapping(event, 0)


def _clean_mapping(values: MutableMapping[str, Any], depth: int) -> MutableMapping[str, Any]:
    for key in values:
        if not key.startswith("_"):
            values[key] = _REDACTED if _is_secret(key) and values[key] else _clean(values[key], depth)
    return values


def _is_secret(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None and _SAFE_KEY.search(key) is None


def _clean(value: object, depth: int) -> object:
    match value:
        case str():
            return shown(value, hidden=_REDACTED)
        case dict() if depth < _MAX_DEPTH:
            return _clean_mapping(dict(value), depth + 1)
        case list() | tuple() if depth < _MAX_DEPTH:
            return [_clean(item, depth + 1) for item in value]
        case _:
            return value


def _json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    rendered = structlog.processors.JSONRenderer(default=str, ensure_ascii=False)(_logger, _method, event)
    return plain_json(rendered.encode("utf-8", "backslashreplace") if isinstance(rendered, str) else rendered).decode()


def harmless(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape what others have sent, so that it does nothing to a terminal."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = plain_lines(value) if key == "exception" else plain(value)
    return event


def _with_priority(_logger: WrappedLogger, _method: str, event: EventDict | str) -> str:
    line = str(event)
    found = re.search(r'"level": ?"([a-z]+)"', line)
    return f"<{_JOURNAL_LEVELS.get(found[1], 6) if found else 6}>{line}"
