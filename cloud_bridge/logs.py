"""Sets logging up: lines for people in a terminal, JSON elsewhere, and no credentials in either."""

import logging
import re
import sys
from typing import Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from cloud_bridge.config import Log
from gateway.wire.plain import plain, plain_lines

_URL_CREDENTIALS: Final = re.compile(r"([a-z][a-z0-9+.-]{0,15}://)[^/@\s\"']+@", re.I)


def configure(settings: Log, stream: TextIO | None = None) -> None:
    """Route structlog, the standard library's logging and warnings to one stream (default: stderr)."""
    out = stream if stream is not None else sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _redact,
    ]
    human = settings.format == "console" or (settings.format == "auto" and out.isatty())
    render: list[Processor] = (
        [structlog.processors.format_exc_info, _harmless, structlog.dev.ConsoleRenderer(colors=out.isatty())]
        if human
        else [structlog.processors.format_exc_info, _redact, structlog.processors.JSONRenderer(default=str)]
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level.upper())
    for chatty in ("apscheduler", "psycopg.pool", "tuf", "uvicorn"):
        # They tell every retry; the parts that use them tell the beginning and the end.
        logging.getLogger(chatty).setLevel("ERROR")
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _harmless(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape what devices have sent, so that it does nothing to a terminal."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = plain_lines(value) if key == "exception" else plain(value)
    return event


def _redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Blank out credentials inside URLs."""
    for key, value in event.items():
        if isinstance(value, str) and "://" in value:
            event[key] = _URL_CREDENTIALS.sub(r"\1[redacted]@", value)
    return event
