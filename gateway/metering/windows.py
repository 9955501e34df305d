"""When something may be sent: windows that open by a crontab(5) expression and stay open for some minutes.

apscheduler evaluates the expressions, with three corrections towards crontab(5):

* a number for the day of the week counts from Sunday (0 or 7), not from Monday;
* in the night in which summer time ends, a window with a fixed hour opens once, not twice;
* where summer time skips the time, it opens by so much later, on the new time.

The length is real time, so a window that spans a change of the clock is neither longer nor shorter.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from apscheduler.triggers.cron import CronTrigger

from gateway.config import LinkWindow
from gateway.metering.periods import SECOND_NS

_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CHANGE: Final = timedelta(hours=2)
"""More than any zone moves its clocks at once."""
_CHAIN: Final = 100
"""Openings looked at to find the end of windows that overlap; beyond it, it is looked at again."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Whether windows are open, and until when that holds (UTC nanoseconds; None: for ever)."""

    is_open: bool
    until_ns: int | None


ALWAYS: Final = Opening(is_open=True, until_ns=None)


def trigger_of(expression: str, zone: tzinfo) -> CronTrigger:
    """Read a crontab(5) expression of five fields.

    Raises:
        ValueError: it cannot be understood; the message says what.
    """
    fields = expression.split()
    if len(fields) != 5:
        raise ValueError(f"expected five fields (minute hour day month weekday), found {len(fields)}")
    fields[4] = re.sub(r"(?<![\w/])[0-7](?!\w)", lambda found: _DAYS[int(found[0])], fields[4])
    # `sun-sat` and the like run over the end of apscheduler's week, which begins on Monday.
    fields[4] = ",".join(_split_range(part) for part in fields[4].split(","))
    return CronTrigger.from_crontab(" ".join(fields), zone)


def _split_range(part: str) -> str:
    found = re.fullmatch(r"sun-(mon|tue|wed|thu|fri|sat)", part, re.I)
    return f"sun,mon-{found[1].lower()}" if found else part


class Windows:
    """Some windows; open when one of them is. None at all: always open."""

    def __init__(self, windows: Sequence[LinkWindow], zone: tzinfo) -> None:
        """Read the expressions.

        Raises:
            ValueError: one cannot be understood.
        """
        self._zone = zone
        self._windows = [
            (trigger_of(window.open, zone), _every_hour(window.open), timedelta(minutes=window.minutes))
            for window in windows
        ]
        self._known: tuple[int, Opening] | None = None

    def at(self, now_ns: int) -> Opening:
        """Tell whether they are open at a moment (UTC), and until when."""
        if not self._windows:
            return ALWAYS
        known = self._known
        if known is not None and known[0] <= now_ns < (known[1].until_ns or now_ns + 1):
            return known[1]
        opening = self._look(datetime.fromtimestamp(now_ns // SECOND_NS, UTC))
        self._known = (now_ns, opening)
        return opening

    def _look(self, now: datetime) -> Opening:
        closing = now
        for _ in range(_CHAIN):
            further = max((self._closing(*window, closing) for window in self._windows), default=closing)
            if further <= closing:
                break
            closing = further
        if closing > now:
            return Opening(is_open=True, until_ns=_ns(closing))
        following = [self._next(trigger, hourly, now) for trigger, hourly, _ in self._windows]
        known = [each for each in following if each is not None]
        return Opening(is_open=False, until_ns=_ns(min(known)) if known else None)

    def _closing(self, trigger: CronTrigger, hourly: bool, length: timedelta, now: datetime) -> datetime:  # noqa: FBT001
        """Return when a window that is open at a moment closes; the moment itself when it is not open then."""
        began = self._next(trigger, hourly, now - length + timedelta(seconds=1))
        return began + length if began is not None and began <= now else now

    def _next(self, trigger: CronTrigger, hourly: bool, not_before: datetime) -> datetime | None:  # noqa: FBT001
        """Return the first opening at or after a moment, in UTC."""
        moment = not_before
        if (moment - _CHANGE).astimezone(self._zone).utcoffset() != moment.astimezone(self._zone).utcoffset():
            # Right after a gap the wall clock is past what the gap skipped; only from before it that is found.
            moment -= _CHANGE
        while True:
            fires: datetime | None = trigger.get_next_fire_time(None, moment.astimezone(self._zone))
            if fires is None:
                return None
            at = fires.astimezone(UTC)
            if at >= not_before and (hourly or not fires.fold):
                return at
            moment = at + timedelta(minutes=1)


def _every_hour(expression: str) -> bool:
    """Tell whether the hour is a wildcard: such windows also open in the hour that is repeated, as cron has it."""
    return expression.split()[1].startswith("*")


def _ns(moment: datetime) -> int:
    return int(moment.timestamp()) * SECOND_NS
