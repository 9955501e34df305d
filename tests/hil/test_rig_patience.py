"""A rig on a busy machine waits as much longer as it is told, and no test asserts anything else for that."""

import time
from typing import Any

import pytest

from hil.loopback.children import RigError
from hil.rig.device import Device
from hil.rig.patience import VARIABLE, patient, pause
from hil.rig.report import pytest_collection_modifyitems


class Refusing:
    """A device on which no command succeeds."""

    def run(self, command: str, timeout: float = 60.0) -> tuple[list[str], list[str], int]:
        return [], [f"{command}: not yet"], 1


def test_without_the_variable_a_wait_is_as_long_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert patient(60.0) == 60.0


@pytest.mark.parametrize(("factor", "seconds"), [("", 0.2), ("10", 2.0)])
def test_a_wait_is_given_up_after_so_many_times_as_long(
    monkeypatch: pytest.MonkeyPatch, factor: str, seconds: float
) -> None:
    monkeypatch.setenv(VARIABLE, factor)
    begin = time.monotonic()
    with pytest.raises(RigError, match="it boots did not happen within"):
        Device(Refusing()).eventually("true", "it boots", seconds=0.2)
    assert time.monotonic() - begin >= seconds


def test_a_slow_device_is_asked_less_often_so_that_it_comes_to_its_own_work() -> None:
    assert pause(0.0) == pause(0.1) == 1.0
    assert pause(1.5) == 6.0
    assert pause(60.0) == 10.0


@pytest.mark.parametrize("said", ["soon", "0.5", "0", "-3", "nan", "inf"])
def test_what_is_no_factor_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(VARIABLE, said)
    with pytest.raises(RigError, match=f"{VARIABLE}={said}"):
        patient(1.0)


@pytest.mark.timeout(40)
def test_a_test_on_a_patient_rig_has_so_many_times_its_limit(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    item: Any = request.node
    monkeypatch.setenv(VARIABLE, "3")
    pytest_collection_modifyitems([item])
    assert item.get_closest_marker("timeout").args == (120.0,)
