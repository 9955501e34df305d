"""The decider: events over their life, interest, zones and times of day."""

from collections.abc import Iterable
from datetime import UTC
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Interest, Pipeline, Rule, TimeWindow, Zone
from gateway.decide.decider import Decider, Origin
from gateway.decide.zones import contains, is_active
from gateway.values import Box, Decision, Finding, Inference
from gateway.wire.messages import Event, ModelRef

SECOND = 1_000_000_000
START_NS = 1_767_225_600 * SECOND  # 2026-01-01T00:00:00Z, a Thursday
MODEL = ModelRef(name="m", version="1.0.0")
QUIET = Interest(low_confidence=None)


def decider(*rules: Rule, zones: Iterable[Zone] = (), interest: Interest = QUIET) -> Decider:
    ids = count(1)
    settings = Pipeline(source="s", model="m", rules=list(rules), zones=list(zones), interest=interest)
    return Decider(Origin("gw", "p", UTC), settings, lambda _: f"id-{next(ids)}")


def seen(at_seconds: float, *findings: Finding) -> Inference:
    at = int(at_seconds * SECOND)
    return Inference("s", 1, START_NS + at, at, MODEL, tuple(findings), 1_000_000, 100)


def events(decision: Decision) -> list[Event]:
    return [entry.body for entry in decision.entries if isinstance(entry.body, Event)]


def phases(decision: Decision) -> list[str]:
    return [event.phase for event in events(decision)]


PERSON = Finding("person", 0.9, Box(0.1, 0.1, 0.3, 0.5))


def test_an_event_is_new_once_then_ends_with_the_same_id() -> None:
    pipeline = decider(Rule(name="r", gone_seconds=2))
    first = events(pipeline.step(seen(0, PERSON)))
    assert [event.phase for event in first] == ["new"]
    assert phases(pipeline.step(seen(1, PERSON))) == []
    assert phases(pipeline.step(seen(2))) == []
    last = events(pipeline.step(seen(3.5)))
    assert [(event.phase, event.event_id) for event in last] == [("end", first[0].event_id)]
    assert last[0].ended_at == "2026-01-01T00:00:01.000Z"
    assert pipeline.open_events == 0


def test_an_open_event_is_updated_at_most_at_its_pace_and_keeps_its_peak() -> None:
    pipeline = decider(Rule(name="r", update_seconds=5))
    pipeline.step(seen(0, PERSON))
    assert phases(pipeline.step(seen(4, Finding("person", 0.99)))) == []
    (update,) = events(pipeline.step(seen(5, PERSON)))
    assert (update.phase, update.revision, update.score, update.peak_score) == ("update", 1, 0.9, 0.99)


def test_hysteresis_keeps_an_event_open_that_a_plain_threshold_would_chop() -> None:
    scores = [0.52, 0.48, 0.51, 0.47, 0.53]

    def opened(hysteresis: float) -> int:
        pipeline = decider(Rule(name="r", min_score=0.5, hysteresis=hysteresis, gone_seconds=0.5))
        steps = [pipeline.step(seen(i, Finding("person", score))) for i, score in enumerate(scores)]
        return sum(phases(step).count("new") for step in steps)

    assert opened(0.05) == 1
    assert opened(0.0) == 3


def test_hold_wants_the_finding_to_stay() -> None:
    pipeline = decider(Rule(name="r", hold_seconds=2))
    assert phases(pipeline.step(seen(0, PERSON))) == []
    assert phases(pipeline.step(seen(1))) == []
    assert phases(pipeline.step(seen(2, PERSON))) == []
    assert phases(pipeline.step(seen(3.9, PERSON))) == []
    assert phases(pipeline.step(seen(4, PERSON))) == ["new"]


def test_cool_down_keeps_a_second_event_back() -> None:
    pipeline = decider(Rule(name="r", gone_seconds=1, cool_down_seconds=10))
    pipeline.step(seen(0, PERSON))
    assert phases(pipeline.step(seen(1))) == ["end"]
    assert phases(pipeline.step(seen(5, PERSON))) == []
    assert phases(pipeline.step(seen(11, PERSON))) == ["new"]


def test_an_event_ends_when_its_source_falls_silent() -> None:
    pipeline = decider(Rule(name="r", gone_seconds=2))
    pipeline.step(seen(0, PERSON))
    assert phases(pipeline.tick(1 * SECOND, START_NS + SECOND)) == []
    assert phases(pipeline.tick(2 * SECOND, START_NS + 2 * SECOND)) == ["end"]


def test_finish_ends_what_is_open() -> None:
    pipeline = decider(Rule(name="r"))
    pipeline.step(seen(0, PERSON))
    assert phases(pipeline.finish(START_NS + SECOND)) == ["end"]
    assert phases(pipeline.finish(START_NS + SECOND)) == []


def test_two_of_a_kind_are_one_event_with_a_count() -> None:
    pipeline = decider(Rule(name="r", labels=["person"]))
    (event,) = events(pipeline.step(seen(0, PERSON, Finding("person", 0.8), Finding("dog", 0.9))))
    assert (event.label, event.count) == ("person", 2)


def test_sensor_channels_have_events_of_their_own() -> None:
    pipeline = decider(Rule(name="r"))
    found = (Finding("anomaly", 0.7, channel=0), Finding("anomaly", 0.8, channel=2))
    assert sorted(event.channel or 0 for event in events(pipeline.step(seen(0, *found)))) == [0, 2]


def test_a_rule_with_a_zone_looks_at_the_foot_point() -> None:
    left = Zone(name="left", polygon=[(0, 0), (0.5, 0), (0.5, 1), (0, 1)])
    pipeline = decider(Rule(name="r", zone="left"), zones=[left])
    assert phases(pipeline.step(seen(0, Finding("person", 0.9, Box(0.6, 0, 0.9, 0.5))))) == []
    (event,) = events(pipeline.step(seen(1, PERSON)))
    assert event.zone == "left"


def test_a_snapshot_is_wished_for_once_per_event() -> None:
    pipeline = decider(Rule(name="r", snapshot=True, update_seconds=1))
    first = pipeline.step(seen(0, PERSON))
    assert [wish.event_id for wish in first.snapshots] == [events(first)[0].event_id]
    assert pipeline.step(seen(2, PERSON)).snapshots == ()


def test_what_the_model_is_unsure_of_travels_but_not_too_often() -> None:
    interest = Interest(low_confidence=(0.3, 0.5), low_confidence_every_seconds=10)
    pipeline = decider(Rule(name="r"), interest=interest)
    unsure = Finding("person", 0.4)
    (event,) = events(pipeline.step(seen(0, unsure)))
    assert (event.reason, event.ended_at) == ("low-confidence", event.started_at)
    assert phases(pipeline.step(seen(5, unsure))) == []
    assert phases(pipeline.step(seen(10, unsure))) == ["new"]


@pytest.mark.parametrize(
    ("window", "hour", "expected"),
    [
        (TimeWindow(start="08:00", end="17:00"), 12, True),
        (TimeWindow(start="08:00", end="17:00"), 17, False),
        (TimeWindow(start="22:00", end="06:00"), 23, True),
        (TimeWindow(start="22:00", end="06:00"), 5, True),
        (TimeWindow(start="22:00", end="06:00"), 12, False),
        (TimeWindow(start="08:00", end="17:00", days=["fri"]), 12, False),
        (TimeWindow(start="22:00", end="06:00", days=["wed"]), 5, True),
    ],
)
def test_times_of_day_are_respected_over_midnight_too(window: TimeWindow, hour: int, expected: bool) -> None:
    assert is_active([window], START_NS + hour * 3600 * SECOND, UTC) is expected


@given(x=st.floats(0, 1), y=st.floats(0, 1))
def test_a_zone_over_the_whole_picture_holds_every_inner_foot_point(x: float, y: float) -> None:
    whole = Zone(name="z", polygon=[(0, 0), (1, 0), (1, 1), (0, 1)])
    inside = 0 <= x < 1 and 0 <= y < 1
    assert contains(whole, Box(x, 0, x, y)) is inside


@given(scores=st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=60))
def test_every_event_is_new_first_and_ends_last_whatever_the_scores(scores: list[float | None]) -> None:
    pipeline = decider(Rule(name="r", gone_seconds=2, hold_seconds=1, cool_down_seconds=3, update_seconds=2))
    told: dict[str, list[str]] = {}
    decisions = [
        pipeline.step(seen(i, *([] if score is None else [Finding("person", score)]))) for i, score in enumerate(scores)
    ]
    for decision in [*decisions, pipeline.finish(START_NS + len(scores) * SECOND)]:
        for event in events(decision):
            told.setdefault(event.event_id, []).append(event.phase)
    for life in told.values():
        assert life[0] == "new"
        assert life[-1] == "end"
        assert set(life[1:-1]) <= {"update"}
