"""The life of one event: hold, open, update, gone, cool-down."""

from dataclasses import dataclass
from typing import Literal

from gateway.config import Rule

SECOND = 1_000_000_000


@dataclass(slots=True)
class Episode:
    """What is going on for one rule, label and channel. Times are monotonic nanoseconds."""

    rule: Rule
    state: Literal["idle", "holding", "open", "cooling"] = "idle"
    since_ns: int = 0
    seen_ns: int = 0
    told_ns: int = 0

    def see(self, score: float, now_ns: int) -> Literal["open", "update"] | None:
        """Take the best score of one sample that may belong to the event; answer what must be told."""
        rule = self.rule
        if self.state == "cooling":
            if now_ns - self.since_ns < rule.cool_down_seconds * SECOND:
                return None
            self.state = "idle"
        if self.state == "open":
            if score < rule.min_score - rule.hysteresis:
                return None
            self.seen_ns = now_ns
            if now_ns - self.told_ns < rule.update_seconds * SECOND:
                return None
            self.told_ns = now_ns
            return "update"
        if score < rule.min_score:
            self.state = "idle"
            return None
        if self.state == "idle":
            self.state, self.since_ns = "holding", now_ns
        if now_ns - self.since_ns < rule.hold_seconds * SECOND:
            return None
        self.state, self.seen_ns, self.told_ns = "open", now_ns, now_ns
        return "open"

    def miss(self) -> None:
        """Take a sample that shows nothing for this rule: what was not yet open must hold anew."""
        if self.state == "holding":
            self.state = "idle"

    def is_over(self, now_ns: int) -> bool:
        """Tell whether an open event has been gone for long enough to end."""
        return self.state == "open" and now_ns - self.seen_ns >= self.rule.gone_seconds * SECOND

    def end(self, now_ns: int) -> None:
        """Close the event and begin the cool-down."""
        self.state, self.since_ns = "cooling", now_ns
