"""How a rig goes from state to state, without a board."""

import pytest

from hil.loopback.children import RigError
from hil.rig.states import STATES, States


class Board(States):
    """Writes down what is done to it; the step to `fails` does not succeed."""

    def __init__(self, *, can_keep: bool = False) -> None:
        self.status, self.spoiled, self.times = "off", False, {}
        self.did: list[str] = []
        self.kept: list[str] = []
        self.fails = ""
        self.can_keep = can_keep
        for state in STATES[1:]:
            setattr(self, f"_to_{state}", lambda state=state: self._step(state))

    @property
    def _can_keep(self) -> bool:
        return self.can_keep

    def _kept_states(self) -> frozenset[str]:
        return frozenset(self.kept)

    def _keep(self, state: str) -> None:
        self.kept.append(state)

    def _restore(self, state: str) -> None:
        self._step(f"restore {state}")

    def _to_off(self) -> None:
        self._step("off")

    def _step(self, what: str) -> None:
        self.did.append(what)
        if what == self.fails:
            raise RigError(f"{what} failed")

    def does(self, state: str) -> list[str]:
        """What it takes to reach a state."""
        self.did = []
        self.transition(state)
        return self.did


def test_states_are_reached_one_after_the_other_and_once() -> None:
    board = Board()
    assert board.does("booted") == ["flashed", "booted"]
    assert board.does("running") == ["provisioned", "running"]
    assert board.does("running") == []
    assert board.does("booted") == ["off", "flashed", "booted"]


def test_what_a_test_has_changed_is_undone_by_what_was_kept_or_from_the_beginning() -> None:
    board, quick = Board(), Board(can_keep=True)
    for each in (board, quick):
        each.transition("running")
        each.spoiled = True
    assert board.does("running") == ["off", *STATES[1:5]]
    assert quick.does("running") == ["restore running"]
    assert quick.does("booted") == ["restore booted"]
    assert quick.does("updated") == ["restore running", "updated"]


@pytest.mark.parametrize("fails", STATES[2:])
def test_after_a_state_that_was_not_reached_the_board_begins_anew(fails: str) -> None:
    """What the step has changed before it failed would be taken for the doing of the next test."""
    board = Board()
    board.fails = fails
    with pytest.raises(RigError):
        board.transition(fails)
    before = STATES[STATES.index(fails) - 1]
    board.fails = ""
    assert board.does(before) == ["off", *STATES[1 : STATES.index(before) + 1]]
    assert board.does(before) == []


def test_a_snapshot_that_was_not_put_back_whole_is_not_taken_for_its_state() -> None:
    board = Board(can_keep=True)
    board.transition("running")
    board.transition("booted")
    board.fails = "restore running"
    with pytest.raises(RigError):
        board.transition("running")
    board.fails = ""
    assert board.does("booted") == ["restore booted"]


def test_a_state_that_does_not_exist_is_told_with_those_that_do() -> None:
    with pytest.raises(RigError, match=r"no state 'on'; there are off, flashed"):
        Board().transition("on")
