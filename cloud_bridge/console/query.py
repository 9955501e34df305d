"""Query parameters, checked: every refusal says what is allowed."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, get_args

from starlette.datastructures import QueryParams

from cloud_bridge.cursors import BadCursorError, P, place_of
from cloud_bridge.store.rolling import DAY_SECONDS, HOUR_SECONDS
from cloud_bridge.values import GAP_SOURCES
from gateway.wire.messages import RecordClass, RecordKind
from gateway.wire.topics import GATEWAY_ID, NAME

MAX_LIMIT: Final = 500
DEFAULT_LIMIT: Final = 50
MAX_TEXT: Final = 200
MAX_KEY: Final = 1000
GRAINS: Final = {"hour": HOUR_SECONDS, "day": DAY_SECONDS}
_MAX_ID: Final = 2**63 - 1
_NUMBER: Final = re.compile(r"[0-9]{1,19}")


class BadQueryError(Exception):
    """A query parameter cannot be used; the text says what is allowed."""


def is_key(text: str) -> bool:
    """Tell whether a part of a path can be the key of anything: PostgreSQL takes no NUL, and no key is that long."""
    return 0 < len(text) <= MAX_KEY and text.isprintable()


class Query:
    """The parameters of one request. An empty parameter, as forms send them, counts as absent.

    Raises:
        BadQueryError: from every method, and here for a parameter that is unknown or given twice.
    """

    def __init__(self, parameters: QueryParams, known: Iterable[str]) -> None:
        names = tuple(known)
        self._values: dict[str, str] = {}
        for name, value in parameters.multi_items():
            if name not in names:
                allowed = ", ".join(names) or "none"
                raise BadQueryError(f"unknown parameter {name[:60]!r}; allowed here: {allowed}")
            if name in self._values:
                raise BadQueryError(f"{name} is given more than once")
            self._values[name] = value.strip()

    def text(self, name: str) -> str | None:
        """Return free text."""
        value = self._values.get(name, "")
        if len(value) > MAX_TEXT or not value.isprintable():
            raise BadQueryError(f"{name} must be printable and at most {MAX_TEXT} characters long")
        return value or None

    def gateway(self) -> str | None:
        """Return a gateway id."""
        return self._matching("gateway", GATEWAY_ID)

    def pipeline(self) -> str | None:
        """Return the name of a pipeline."""
        return self._matching("pipeline", NAME)

    def record_class(self) -> str | None:
        """Return an outbox class."""
        return self._one_of("class", get_args(RecordClass))

    def kind(self) -> str | None:
        """Return a kind of record."""
        return self._one_of("kind", get_args(RecordKind))

    def limit(self) -> int:
        """Return how many rows are wanted."""
        value = self._values.get("limit", "")
        if not value:
            return DEFAULT_LIMIT
        if not _NUMBER.fullmatch(value) or not 1 <= int(value) <= MAX_LIMIT:
            raise BadQueryError(f"limit must be a whole number from 1 to {MAX_LIMIT}")
        return int(value)

    def before(self) -> int | None:
        """Return the id to page on from."""
        value = self._values.get("before", "")
        if not value:
            return None
        if not _NUMBER.fullmatch(value) or not 1 <= int(value) <= _MAX_ID:
            raise BadQueryError("before must be an id as `next_before` of the page before gives it")
        return int(value)

    def since_ns(self) -> int | None:
        """Return when the time begins that is asked for, in nanoseconds UTC; a time without a zone is UTC."""
        return self._time_ns("since")

    def until_ns(self) -> int | None:
        """Return when the time ends that is asked for, in nanoseconds UTC; a time without a zone is UTC."""
        return self._time_ns("until")

    def cursor(self, kind: type[P]) -> P | None:
        """Return where to page on from, in a list without ids."""
        value = self._values.get("cursor", "")
        try:
            return place_of(value, kind) if value else None
        except BadCursorError:
            raise BadQueryError("cursor must be as `next_cursor` of the page before gives it") from None

    def grain_seconds(self) -> int:
        """Return the length of the rollups."""
        return GRAINS[self._one_of("by", tuple(GRAINS)) or "hour"]

    def source(self) -> str | None:
        """Return who told of a gap."""
        return self._one_of("source", GAP_SOURCES)

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """Return one of some words."""
        return self._one_of(name, allowed)

    def _time_ns(self, name: str) -> int | None:
        value = self._values.get(name, "")
        if not value:
            return None
        refusal = BadQueryError(f"{name} must be a time as in RFC 3339, from 1970 to 2200, e.g. 2026-01-31T12:00:00Z")
        try:
            at = datetime.fromisoformat(value)
            at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        except (ValueError, OverflowError):
            raise refusal from None
        if not 1970 <= at.year <= 2200:
            raise refusal
        return int(at.timestamp() * 1_000_000) * 1000

    def _matching(self, name: str, pattern: re.Pattern[str]) -> str | None:
        value = self._values.get(name, "")
        if value and pattern.fullmatch(value) is None:
            raise BadQueryError(f"{name} must match {pattern.pattern}")
        return value or None

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> str | None:
        value = self._values.get(name, "")
        if value and value not in allowed:
            raise BadQueryError(f"{name} must be one of {', '.join(allowed)}")
        return value or None
