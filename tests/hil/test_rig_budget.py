"""When tests on a rig are begun no more."""

import pytest

from hil.loopback.children import RigError
from hil.rig.budget import VARIABLE, Budget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_tests_are_begun_until_the_time_is_over_and_not_after() -> None:
    clock = Clock()
    budget = Budget("60", clock=clock)
    clock.now += 60.0
    assert budget.over() == ""
    clock.now += 1.0
    assert budget.over() == f"not begun: 61 s have passed of {VARIABLE}=60"


def test_without_a_limit_all_are_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    clock = Clock()
    budget = Budget(clock=clock)
    clock.now += 1e9
    assert budget.over() == ""


def test_the_environment_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0.5")
    assert Budget().seconds == 0.5


@pytest.mark.parametrize("said", ["soon", "-1", "nan"])
def test_what_is_no_time_is_refused_with_an_example(said: str) -> None:
    with pytest.raises(RigError, match=f"{VARIABLE}={said}: .*such as 900"):
        Budget(said)
