"""Levels: when they change, and when they do not."""

from dataclasses import replace

import pytest

from cloud_bridge.config import Drift
from cloud_bridge.drift.judging import Level, Standing, level_of, next_standing, worst
from cloud_bridge.drift.statistics import Comparison

SETTINGS = Drift()
FOUND = Comparison(psi=0.3, ks=0.3, p_value=1e-9, outside=0.3, outside_p_value=1e-9, samples=1000, effective=500.0)


@pytest.mark.parametrize(
    ("found", "held", "expected"),
    [
        (FOUND, "ok", "alarm"),
        (replace(FOUND, psi=0.15), "ok", "warning"),
        (replace(FOUND, psi=0.05), "ok", "ok"),
        (replace(FOUND, p_value=0.02), "ok", "ok"),  # large, but it may be chance
        (replace(FOUND, p_value=0.003), "ok", "ok"),  # of four looks, one in a hundred
        (replace(FOUND, psi=0.22), "alarm", "alarm"),  # not enough relief yet
        (replace(FOUND, psi=0.19), "alarm", "warning"),
        (replace(FOUND, psi=0.09), "warning", "warning"),
        (replace(FOUND, psi=0.07), "warning", "ok"),
        (replace(FOUND, samples=199), "alarm", "waiting"),
        (None, "ok", "waiting"),
    ],
)
def test_a_level_needs_effect_significance_and_samples(found: Comparison | None, held: Level, expected: Level) -> None:
    assert level_of(found, "shape", SETTINGS, looks=4, held=held) == expected


def test_against_the_range_of_the_training_only_what_lies_outside_counts() -> None:
    assert level_of(FOUND, "range", SETTINGS, looks=1, held="ok") == "alarm"
    inside = replace(FOUND, outside=0.02, outside_p_value=1e-3, psi=9.0, p_value=0.0)
    assert level_of(inside, "range", SETTINGS, looks=1, held="ok") == "ok"
    assert level_of(inside, "shape", SETTINGS, looks=1, held="ok") == "alarm", "control"


def test_a_level_changes_when_two_looks_in_a_row_with_something_new_agree() -> None:
    standing = Standing("ok", since_ns=1)
    once = next_standing(standing, "alarm", newest=10, now_ns=2)
    assert once.level == "ok"
    again = next_standing(once, "alarm", newest=10, now_ns=3)
    assert again.level == "ok", "nothing new came: it is the same look"
    twice = next_standing(again, "alarm", newest=11, now_ns=4)
    assert (twice.level, twice.since_ns) == ("alarm", 4)


def test_one_odd_look_is_forgotten() -> None:
    standing = next_standing(Standing("ok", since_ns=1), "alarm", newest=10, now_ns=2)
    standing = next_standing(standing, "ok", newest=11, now_ns=3)
    standing = next_standing(standing, "alarm", newest=12, now_ns=4)
    assert standing.level == "ok"


def test_that_all_is_well_is_believed_at_once() -> None:
    assert next_standing(Standing(), "ok", newest=1, now_ns=5) == Standing("ok", 5, "ok", 0, 1)
    assert next_standing(Standing(), "alarm", newest=1, now_ns=5).level == "waiting"


def test_the_worst_level_counts() -> None:
    assert worst(["ok", "warning", "waiting"]) == "warning"
    assert worst([]) == "waiting"
