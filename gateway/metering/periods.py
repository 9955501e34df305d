"""Budget periods, and when one is really over. Pure: the time comes in.

A period is an hour, a day or a month of the gateway's time zone, so the wall clock says when it is over. That clock may
be wrong: 1970 until the network sets it, ten years ahead with a bad battery, stepped while the gateway runs. No step of
the clock may grant a budget twice, and none may withhold it for ever. So every account remembers how the wall clock
stood to the time that has really passed, and a new period is believed where the two agree. Where they do not:

* a synchronised clock is believed if there was a reboot or no synchronisation before: the difference is then the time
  that the machine was off, or the clock being set right;
* a synchronised clock that jumped while it was watched moves the account to the period it shows, with all that was
  spent in it: the next period begins as usual;
* any other clock changes nothing until it is synchronised;
* and after the longest such period has really passed, a new one begins whatever the clock says.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

import msgspec

from gateway.config import Period

SECOND_NS: Final = 1_000_000_000
AGREEMENT_MS: Final = 10 * 60 * 1000
"""So much may the wall clock drift away from the time that has passed between two looks."""
LONGEST_MS: Final[dict[Period, int]] = {
    "hour": 3600 * 1000,
    "day": 25 * 3600 * 1000,  # when summer time ends
    "month": (31 * 24 + 1) * 3600 * 1000,
}


@dataclass(frozen=True, slots=True)
class Moment:
    """Everything that is known about the time."""

    wall_ns: int  # UTC, as the wall clock has it
    age_ms: int  # time that has really passed, from an arbitrary beginning; never goes back, also not over a reboot
    boot_id: str
    synchronised: bool  # the kernel says that somebody keeps the wall clock right


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent in one period, and how the clocks stood when that was last known to be right."""

    per: Period
    started_ns: int  # the period, by its first moment (UTC)
    began_age_ms: int
    spent_bytes: int = 0
    offset_ms: int  # wall clock less age
    boot_id: str = ""
    synchronised: bool = False


def period_at(per: Period, wall_ns: int, zone: tzinfo) -> tuple[int, int]:
    """Return the first moment of the period that holds a moment, and of the next one, in UTC nanoseconds."""
    local = datetime.fromtimestamp(wall_ns // SECOND_NS, UTC).astimezone(zone)
    if per == "hour":
        # By the offset in force: the hour that summer time repeats counts as two.
        into = timedelta(minutes=local.minute, seconds=local.second)
        start = local.astimezone(UTC) - into
        return _ns(start), _ns(start + timedelta(hours=1))
    first = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if per == "day":
        return _ns(first), _ns(first + timedelta(days=1))  # wall time: a day of 23 or 25 hours is one day
    first = first.replace(day=1)
    following = (first + timedelta(days=32)).replace(day=1)
    return _ns(first), _ns(following)


def opened(per: Period, now: Moment, zone: tzinfo) -> Account:
    """Begin an account in the period that the clock shows."""
    return Account(
        per=per,
        started_ns=period_at(per, now.wall_ns, zone)[0],
        began_age_ms=now.age_ms,
        offset_ms=_offset_ms(now),
        boot_id=now.boot_id,
        synchronised=now.synchronised,
    )


def rolled(account: Account, now: Moment, zone: tzinfo) -> Account:
    """Return the account as it stands now: the same, moved to another period, or a new one with nothing spent."""
    if now.age_ms - account.began_age_ms >= LONGEST_MS[account.per]:
        return opened(account.per, now, zone)
    agrees = abs(_offset_ms(now) - account.offset_ms) <= AGREEMENT_MS
    explained = now.synchronised and (account.boot_id != now.boot_id or not account.synchronised)
    if not (agrees or now.synchronised):
        return account
    started_ns = period_at(account.per, now.wall_ns, zone)[0]
    if started_ns > account.started_ns and (agrees or explained):
        return opened(account.per, now, zone)
    return msgspec.structs.replace(
        account,
        # A clock that is set back a little stays in the period: crossing its beginning again would grant it twice.
        started_ns=max(started_ns, account.started_ns) if agrees else started_ns,
        offset_ms=_offset_ms(now),
        boot_id=now.boot_id,
        # Once right in this boot, it was right: losing the time server must not explain a jump.
        synchronised=now.synchronised or (account.synchronised and account.boot_id == now.boot_id),
    )


def renews_at(account: Account, now: Moment, zone: tzinfo) -> int:
    """Return when the next period begins, in UTC nanoseconds of the wall clock as it is."""
    in_period = period_at(account.per, now.wall_ns, zone)
    by_clock = in_period[1] if in_period[0] == account.started_ns else None
    by_age = now.wall_ns + max(0, account.began_age_ms + LONGEST_MS[account.per] - now.age_ms) * 1_000_000
    return by_age if by_clock is None else min(by_clock, by_age)


def _offset_ms(now: Moment) -> int:
    return now.wall_ns // 1_000_000 - now.age_ms


def _ns(moment: datetime) -> int:
    return int(moment.timestamp()) * SECOND_NS
