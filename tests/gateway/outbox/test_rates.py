"""Rates and forecasts."""

import pytest

from gateway.config import ClassQuota
from gateway.outbox.quota import Amount, Held
from gateway.outbox.rates import Flow, Meter, seconds_until_full

SECOND = 1_000_000_000
HELD = Held(rows=400, disk_bytes=400_000, lowest=1, highest=400, oldest_ms=0)
QUOTA = ClassQuota(max_rows=1000, max_bytes=1_000_000)


def test_a_steady_flow_is_told_as_it_is_from_the_beginning() -> None:
    meter = Meter(0)
    for second in range(1, 301):
        meter.add(Amount(10, 1000), second * SECOND)
        if second >= 10:
            assert meter.flow(second * SECOND).rows_per_second == pytest.approx(10, rel=0.1)
    assert meter.flow(300 * SECOND).bytes_per_second == pytest.approx(1000, rel=0.02)


def test_a_flow_that_stops_fades() -> None:
    meter = Meter(0)
    for second in range(1, 301):
        meter.add(Amount(10, 1000), second * SECOND)
    assert meter.flow(900 * SECOND).rows_per_second < 0.01


@pytest.mark.parametrize(
    ("incoming", "outgoing", "expected"),
    [
        (Flow(1, 100), Flow(), 600),
        (Flow(1, 10_000), Flow(), 60),
        (Flow(3, 300), Flow(2, 200), 600),
        (Flow(1, 100), Flow(1, 100), None),
        (Flow(1, 100), Flow(9, 900), None),
        (Flow(), Flow(), None),
    ],
)
def test_the_forecast_is_what_is_reached_first(incoming: Flow, outgoing: Flow, expected: float | None) -> None:
    assert seconds_until_full(QUOTA, HELD, incoming, outgoing) == expected


def test_a_full_class_that_still_grows_is_full_now() -> None:
    full = Held(rows=1000, disk_bytes=0, lowest=1, highest=1000, oldest_ms=0)
    assert seconds_until_full(QUOTA, full, Flow(1, 0), Flow()) == 0
