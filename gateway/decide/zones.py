"""Where and when a rule applies."""

from collections.abc import Sequence
from datetime import UTC, datetime, time, tzinfo

from gateway.config import TimeWindow, Zone
from gateway.values import Box

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def contains(zone: Zone, box: Box) -> bool:
    """Tell whether the foot point of a box (middle of its lower edge) lies in a zone, by the even-odd rule."""
    x, y = (box.left + box.right) / 2, box.bottom
    inside = False
    corners = zone.polygon
    for (x1, y1), (x2, y2) in zip(corners, (*corners[1:], corners[0]), strict=True):
        if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
            inside = not inside
    return inside


def is_active(windows: Sequence[TimeWindow] | None, at_ns: int, zone: tzinfo) -> bool:
    """Tell whether a time falls into one of the windows; without windows it always does.

    A window whose end is not after its start runs over midnight and belongs to the day on which it starts.
    """
    if windows is None:
        return True
    local = datetime.fromtimestamp(at_ns / 1e9, UTC).astimezone(zone)
    clock, today = local.time().replace(tzinfo=None), local.weekday()
    return any(_within(window, clock, today) for window in windows)


def _within(window: TimeWindow, clock: time, today: int) -> bool:
    start, end = time.fromisoformat(window.start), time.fromisoformat(window.end)

    def on(day: int) -> bool:
        return window.days is None or _DAYS[day % 7] in window.days

    if start < end:
        return on(today) and start <= clock < end
    return (on(today) and clock >= start) or (on(today - 1) and clock < end)
