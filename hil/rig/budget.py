"""Until when tests on a rig are begun: where they share a limit of time with others, the last ones are left out."""

import math
import os
import time
from collections.abc import Callable
from typing import Final

from hil.loopback.children import RigError

VARIABLE: Final = "SLUICE_RIG_SECONDS"
"""The variable of the environment with the seconds after which no further test is begun; without it, all are."""


class Budget:
    """Seconds of a session in which tests may begin. One that has begun runs to its end."""

    def __init__(self, said: str | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin to count.

        Args:
            said: the seconds as text, 0 or more; that of the environment if it is not given, without limit if empty.
            clock: of the seconds that pass.

        Raises:
            RigError: what was said is no number, or below 0.
        """
        self._clock, self._began = clock, clock()
        text = os.environ.get(VARIABLE, "") if said is None else said
        try:
            self.seconds = float(text or "inf")
        except ValueError:
            self.seconds = math.nan
        if not self.seconds >= 0.0:
            raise RigError(f"{VARIABLE}={text}: it is the seconds in which tests are begun, 0 or more, such as 900")

    def over(self) -> str:
        """Return why no further test is begun; empty while there is time."""
        passed = self._clock() - self._began
        if passed <= self.seconds:
            return ""
        return f"not begun: {passed:.0f} s have passed of {VARIABLE}={self.seconds:.0f}"
