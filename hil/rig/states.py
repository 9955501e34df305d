"""From state to state: forward by steps, back by what was kept of the board, and anew where nobody knows how it is."""

import time
from abc import abstractmethod
from typing import Final

from hil.loopback.children import RigError

STATES: Final = ("off", "flashed", "booted", "provisioned", "running", "updated")
_WORTH_KEEPING: Final = ("booted", "running")


class States:
    """The states of one board. Whoever inherits from it has a method `_to_STATE` for each, and what is kept."""

    status: str
    """The state that was reached last."""
    spoiled: bool
    """Whether the board may have changed since that was reached: by a test, or by a step that failed."""
    times: dict[str, float]
    """Seconds from one state to the next, of the last time that each was reached without a snapshot."""

    @property
    @abstractmethod
    def _can_keep(self) -> bool:
        """Whether the board can be kept as it is, and had back."""

    @abstractmethod
    def _kept_states(self) -> frozenset[str]:
        """Return the states that were kept."""

    @abstractmethod
    def _keep(self, state: str) -> None:
        """Keep the board as it is now."""

    @abstractmethod
    def _restore(self, state: str) -> None:
        """Have the board back as it was kept."""

    def transition(self, status: str) -> None:
        """Reach a state in which no test has changed anything.

        Raises:
            RigError: it cannot be reached; the reason, and the end of the console's log.
        """
        if status not in STATES:
            raise RigError(f"there is no state {status!r}; there are {', '.join(STATES)}")
        if self.status == status and not self.spoiled:
            return
        try:
            self._reach(status)
        except BaseException:
            self.spoiled = True  # what the step has done so far would be taken for the doing of the next test
            raise

    def _reach(self, status: str) -> None:
        begin = self._nearest(status)
        for state in STATES[STATES.index(begin) + 1 : STATES.index(status) + 1]:
            started = time.monotonic()
            getattr(self, f"_to_{state}")()
            self.status, self.spoiled = state, False
            self.times[state] = time.monotonic() - started
            if state in _WORTH_KEEPING and self._can_keep:
                self._keep(state)

    def _nearest(self, wanted: str) -> str:
        """Go back to the last state before a wanted one that can be had quickly; returns it."""
        at = STATES.index(wanted)
        kept = self._kept_states() if self._can_keep else frozenset[str]()
        if not self.spoiled and STATES.index(self.status) < at:
            later = [state for state in kept if STATES.index(self.status) < STATES.index(state) <= at]
            if not later:
                return self.status
        for state in reversed(STATES[: at + 1]):
            if state in kept:
                self._restore(state)
                self.status, self.spoiled = state, False
                return state
        self._to_off()
        self.status, self.spoiled = "off", False
        return "off"

    @abstractmethod
    def _to_off(self) -> None:
        """Switch the board off."""
