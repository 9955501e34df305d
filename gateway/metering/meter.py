"""Says what may pass over the way to the cloud, and keeps the account of what did."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import tzinfo
from typing import Final, Literal

import msgspec
import structlog

from gateway.config import FEATURES, Budget, Feature, Metering
from gateway.metering.ledger import Book, Bookkeeper
from gateway.metering.periods import Account, Moment, opened, renews_at, rolled
from gateway.metering.sizes import byte_count
from gateway.metering.windows import Opening, Windows
from gateway.outbox.ages import AgeClock, Clocks
from gateway.wire.messages import CLASSES, RecordClass

log = structlog.get_logger()

Direction = Literal["out", "in"]
Traffic = Feature | Literal["protocol"]
"""What bytes were for; `protocol` is what keeps the connection: its handshake, pings, and the broker's answers."""

FEATURE_OF: Final[dict[RecordClass, Feature]] = {
    "critical": "records",
    "event": "records",
    "measure": "records",
    "bulk": "snapshots",
}
AHEAD_SHARE: Final = 256
AHEAD_BYTES: Final = (1024, 1024 * 1024)
"""Spending is written down ahead, in steps of this share of the budget: after a power cut at most one step too much
counts as spent, and never too little."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Why something waits, and until when (UTC nanoseconds; None: no end is known)."""

    reason: Literal["budget", "window"]
    until_ns: int | None


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a feature that has a budget may still move in this period, in bytes."""

    left_bytes: int  # without what is set aside
    budget_bytes: int
    period: int  # another number in each period, also where a clock that was set back begins two at one moment
    renews_at_ns: int  # when the next one begins (UTC)


@dataclass(frozen=True, slots=True)
class FeatureUsage:
    """One use of the link. Bytes of MQTT; `left_bytes` is without what is set aside for what is on its way."""

    sent_bytes: int  # since the start
    received_bytes: int
    # In this month of the gateway's time zone, over restarts. A kill or a power cut takes nothing of what has a budget,
    # and of the rest at most what passed since it was saved last.
    month_sent_bytes: int
    month_received_bytes: int
    budget_bytes: int | None = None
    per: str = ""
    spent_bytes: int = 0
    left_bytes: int | None = None
    renews_at_ns: int | None = None
    window_open: bool = True
    window_until_ns: int | None = None  # when it closes, or opens
    hold: Hold | None = None


@dataclass(frozen=True, slots=True)
class LinkUsage:
    """Everything the meter tells."""

    metered: bool  # whether the limits apply to the broker in use
    features: Mapping[Feature, FeatureUsage]
    protocol: FeatureUsage
    held: Mapping[RecordClass, Hold]  # classes that wait


class Meter:
    """The meter of one gateway. Every method may be called from any thread.

    Use: ask `allow` before something is moved, which sets the bytes aside; tell `spent` of what passed. `allow` may
    wait for the disk for a moment; `spent` and the questions never do.
    """

    def __init__(
        self,
        settings: Metering,
        zone: tzinfo,
        ledger: Bookkeeper,
        *,
        metered: bool = True,
        clocks: Clocks | None = None,
        synchronised: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take up the accounts that the ledger remembers.

        Args:
            settings: the budgets and windows.
            zone: the gateway's time zone.
            ledger: where spending is written down.
            metered: whether the limits apply until `link` says otherwise.
            clocks: replaced in tests.
            synchronised: whether somebody keeps the wall clock right; asked about once a second.

        Raises:
            ValueError: a window's expression cannot be understood.
        """
        self._zone = zone
        self._ledger = ledger
        self._clocks = clocks or Clocks()
        self._synchronised = synchronised
        self._metered = metered
        self._override = frozenset(settings.override)
        self._budgets: dict[Feature, Budget] = {}
        self._windows: dict[Feature, Windows] = {}
        for name in FEATURES:
            feature = settings.features.get(name)
            if feature is not None and feature.budget is not None:
                self._budgets[name] = feature.budget
            self._windows[name] = Windows(feature.windows if feature is not None else (), zone)
        self._class_windows = {name: Windows(each.windows, zone) for name, each in settings.classes.items()}
        self._limits = {name: byte_count(budget.bytes) for name, budget in self._budgets.items()}
        self._limited = bool(settings.features or settings.classes)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        book = ledger.read()
        self._age = AgeClock(book.age, self._clocks)
        self._accounts: dict[str, Account] = dict(book.accounts)
        self._secured = {name: account.spent_bytes for name, account in self._accounts.items()}
        self._set_aside: Counter[Feature] = Counter()
        self._exhausted: dict[str, int] = {}  # by the period in which not even the next piece fitted
        self._passed: Counter[tuple[Traffic, Direction]] = Counter()
        self._moment: Moment | None = None
        self._told: dict[Feature, Hold] = {}

    @property
    def limits(self) -> bool:
        """Whether there is any budget or window that applies to the present link."""
        return self._limited and self._metered

    # ---- asked before something is moved -----------------------------------------------------------

    def allow(self, feature: Feature, size_bytes: int, *, record_class: RecordClass | None = None) -> bool:
        """Say whether so many bytes may pass now, and set them aside until `spent` tells of them.

        What is larger than a whole budget passes when nothing of it is spent yet: otherwise it would wait for ever.
        """
        with self._lock:
            self._look()
            if not self._metered or record_class in self._override:
                allowed = True
            elif not self._window_of(feature, record_class).is_open:
                allowed = False
            else:
                left = self._left(feature)
                fresh = left is not None and self._spent(feature) == 0 and not self._set_aside[feature]
                allowed = left is None or size_bytes <= left or fresh
            due = False
            if allowed:
                self._set_aside[feature] += size_bytes
                due = self._metered and self._secure(feature)
        if due:
            self._write()
        return allowed

    def give_back(self, feature: Feature, size_bytes: int) -> None:
        """Return what was set aside and will not be moved."""
        with self._lock:
            self._release(feature, size_bytes)

    def exhaust(self, feature: Feature, size_bytes: int) -> None:
        """A piece of this size was not allowed: if the budget lacks it, the feature waits for the next period."""
        with self._lock:
            account, left = self._account(feature), self._left(feature)
            # It may have been a window that closed just then, which must not cost what is left of the budget.
            if account is not None and left is not None and left < size_bytes:
                self._exhausted[feature] = account.started_ns

    def hold(self, feature: Feature, record_class: RecordClass | None = None) -> Hold | None:
        """Say whether something must wait, and until when; None: it may begin."""
        with self._lock:
            self._look()
            return self._hold(feature, record_class)

    def held(self) -> dict[RecordClass, Hold]:
        """Return the classes of records that must wait."""
        with self._lock:
            if not self._metered:
                return {}
            self._look()
            found = {name: self._hold(FEATURE_OF[name], name) for name in CLASSES}
            return {name: hold for name, hold in found.items() if hold is not None}

    def room(self, feature: Feature, record_class: RecordClass | None = None) -> int | None:
        """Return how many bytes may still pass in this period; None: any number."""
        with self._lock:
            if not self._metered or record_class in self._override:
                return None
            self._look()
            return self._left(feature)

    def allowance(self, feature: Feature) -> Allowance | None:
        """Return what may still pass, and until when that counts; None: any number of bytes, at any time."""
        with self._lock:
            now = self._look()
            account, left = self._account(feature), self._left(feature)
            if not self._metered or account is None or left is None:
                return None
            renews_at_ns = renews_at(account, now, self._zone)
            return Allowance(left, self._limits[feature], account.began_age_ms, renews_at_ns)

    # ---- told of what passed ---------------------------------------------------------------------

    def link(self, *, metered: bool) -> None:
        """A connection is there, over a broker to which the limits apply, or not."""
        with self._lock:
            self._metered = metered

    def link_down(self) -> None:
        """The connection is gone: what was set aside for it will not be moved."""
        with self._lock:
            for feature in ("records", "snapshots", "telemetry"):
                self._set_aside.pop(feature, None)
                self._exhausted.pop(feature, None)  # by what was set aside, perhaps

    def spent(self, feature: Traffic, direction: Direction, size_bytes: int) -> None:
        """Count bytes that passed."""
        with self._lock:
            self._look()
            self._passed[feature, direction] += size_bytes
            self._add(f"month:{feature}:{direction}", "month", size_bytes)
            if feature == "protocol":
                return
            if direction == "out" or feature == "model_downloads":
                self._release(feature, size_bytes)
            if self._metered and feature in self._budgets:
                self._add(feature, self._budgets[feature].per, size_bytes)

    def save(self) -> None:
        """Write the accounts down, now and then. Waits for the disk."""
        self._write()

    def close(self) -> None:
        """Write down what was really spent, at a clean stop; nothing may be on its way any more."""
        with self._lock:
            self._set_aside.clear()
            self._secured.clear()
        self._write()

    # ---- how it stands ---------------------------------------------------------------------------

    def usage(self) -> LinkUsage:
        """Tell everything."""
        with self._lock:
            now = self._look()
            features = {name: self._usage_of(name, now) for name in FEATURES}
            protocol = FeatureUsage(*self._passed_of("protocol"), *self._month_of("protocol"))
            held: dict[RecordClass, Hold] = {}
            for name in CLASSES:
                hold = self._hold(FEATURE_OF[name], name)
                if hold is not None:
                    held[name] = hold
            return LinkUsage(metered=self._metered, features=features, protocol=protocol, held=held)

    def tell(self) -> None:
        """Log what has begun or ended to wait since the last time."""
        with self._lock:
            self._look()
            holds = {name: self._hold(name, None) for name in FEATURES}
        for name, hold in holds.items():
            told = self._told.get(name)
            if hold is not None and (told is None or told.reason != hold.reason):
                log.warning("link_hold_began", feature=name, reason=hold.reason, until_ns=hold.until_ns)
                self._told[name] = hold
            elif hold is None and told is not None:
                log.info("link_hold_ended", feature=name, reason=told.reason)
                del self._told[name]

    # ---- inside; the lock is held ----------------------------------------------------------------

    def _look(self) -> Moment:
        """Look at the clocks, at most once a second, and move the accounts on."""
        age_ms = self._age.now_ms()
        moment = self._moment
        if moment is not None and age_ms - moment.age_ms < 1000:
            return moment
        reading = self._clocks.read()
        self._moment = now = Moment(reading.wall_ns, age_ms, reading.boot_id, self._synchronised())
        for name, account in self._accounts.items():
            following = rolled(account, now, self._zone)
            if following.began_age_ms != account.began_age_ms or following.spent_bytes < account.spent_bytes:
                self._secured[name] = 0
                self._exhausted.pop(name, None)
            self._accounts[name] = following
        return now

    def _account(self, feature: Feature) -> Account | None:
        """Return the account of a feature that has a budget, of the period its budget speaks of."""
        budget = self._budgets.get(feature)
        if budget is None:
            return None
        account = self._accounts.get(feature)
        if account is None or account.per != budget.per:
            account = self._accounts[feature] = opened(budget.per, self._moment or self._look(), self._zone)
            self._secured[feature] = 0
        return account

    def _add(self, name: str, per: Literal["hour", "day", "month"], size_bytes: int) -> None:
        account = self._accounts.get(name)
        if account is None or account.per != per:
            account = opened(per, self._moment or self._look(), self._zone)
        self._accounts[name] = msgspec.structs.replace(account, spent_bytes=account.spent_bytes + size_bytes)

    def _spent(self, feature: Feature) -> int:
        account = self._account(feature)
        return account.spent_bytes if account is not None else 0

    def _left(self, feature: Feature) -> int | None:
        account = self._account(feature)
        if account is None:
            return None
        return max(0, self._limits[feature] - account.spent_bytes - self._set_aside[feature])

    def _release(self, feature: Feature, size_bytes: int) -> None:
        self._set_aside[feature] = max(0, self._set_aside[feature] - size_bytes)

    def _window_of(self, feature: Feature, record_class: RecordClass | None) -> Opening:
        windows = self._class_windows.get(record_class) if record_class is not None else None
        return (windows or self._windows[feature]).at(self._clocks.wall_ns())

    def _hold(self, feature: Feature, record_class: RecordClass | None) -> Hold | None:
        if not self._metered or record_class in self._override:
            return None
        opening = self._window_of(feature, record_class)
        if not opening.is_open:
            return Hold("window", opening.until_ns)
        account = self._account(feature)
        if account is None:
            return None
        used_up = self._limits[feature] <= account.spent_bytes
        if used_up or self._exhausted.get(feature) == account.started_ns:
            return Hold("budget", renews_at(account, self._moment or self._look(), self._zone))
        return None

    def _secure(self, feature: Feature) -> bool:
        """Tell whether spending must be written down before it happens."""
        account = self._account(feature)
        if account is None:
            return False
        upcoming = account.spent_bytes + self._set_aside[feature]
        if upcoming <= self._secured.get(feature, 0):
            return False
        least, most = AHEAD_BYTES
        self._secured[feature] = upcoming + min(max(self._limits[feature] // AHEAD_SHARE, least), most)
        return True

    def _write(self) -> None:
        """Write down the state of this moment; the lock is not held, so that counting does not wait for the disk."""
        with self._writing:
            with self._lock:
                accounts = {name: self._secured_account(name) for name in self._accounts} | self._ahead_this_month()
                book = Book(accounts=accounts, age=self._age.save())
            self._ledger.write(book)

    def _ahead_this_month(self) -> dict[str, Account]:
        """Return the month's accounts of what has a budget, as far ahead as the budget's own.

        Which way bytes will pass is known of the most of them: downloads come in, everything else goes out.
        """
        found: dict[str, Account] = {}
        for feature in self._budgets:
            name = f"month:{feature}:{'in' if feature == 'model_downloads' else 'out'}"
            ahead = self._secured.get(feature, 0) - self._spent(feature)
            if ahead > 0:
                account = self._accounts.get(name) or opened("month", self._moment or self._look(), self._zone)
                found[name] = msgspec.structs.replace(account, spent_bytes=account.spent_bytes + ahead)
        return found

    def _secured_account(self, name: str) -> Account:
        account = self._accounts[name]
        return msgspec.structs.replace(account, spent_bytes=max(account.spent_bytes, self._secured.get(name, 0)))

    def _passed_of(self, feature: Traffic) -> tuple[int, int]:
        return self._passed[feature, "out"], self._passed[feature, "in"]

    def _month_of(self, feature: Traffic) -> tuple[int, int]:
        accounts = [self._accounts.get(f"month:{feature}:{direction}") for direction in ("out", "in")]
        sent, received = (account.spent_bytes if account is not None else 0 for account in accounts)
        return sent, received

    def _usage_of(self, feature: Feature, now: Moment) -> FeatureUsage:
        account = self._account(feature)
        opening = self._window_of(feature, None)
        passed, month = self._passed_of(feature), self._month_of(feature)
        if account is None:
            return FeatureUsage(
                *passed,
                *month,
                window_open=opening.is_open,
                window_until_ns=opening.until_ns,
                hold=self._hold(feature, None),
            )
        return FeatureUsage(
            *passed,
            *month,
            budget_bytes=self._limits[feature],
            per=account.per,
            spent_bytes=account.spent_bytes,
            left_bytes=max(0, self._limits[feature] - account.spent_bytes),
            renews_at_ns=renews_at(account, now, self._zone),
            window_open=opening.is_open,
            window_until_ns=opening.until_ns,
            hold=self._hold(feature, None),
        )
