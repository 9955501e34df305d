"""How long a rig waits: what is written where the wait is, times SLUICE_RIG_PATIENCE, on a machine with other work.

The times beside the waits are for emulated processors on two cores of their own. Patience lets a test fail later; what
it asserts is the same. What runs in the guest, such as its watchdog, has times of its own, which patience leaves alone.
"""

import math
import os
from typing import Final

from hil.loopback.children import RigError

_SHORTEST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 10.0
_PAUSE_PER_LOOK: Final = 4.0
VARIABLE: Final = "SLUICE_RIG_PATIENCE"
"""The variable of the environment with the factor, 1 or more."""


def patient(seconds: float) -> float:
    """Return how long to wait for what takes so many seconds at most where nothing else runs.

    Raises:
        RigError: the factor is no number, or below 1.
    """
    return seconds * factor()


def pause(look_seconds: float) -> float:
    """Return how long to wait between two looks at something, by how long a look took; all in seconds.

    A look starts programs on the processors that what is waited for needs: with a look in every second, a starved
    emulator would spend much of its time on being asked whether it has booted.
    """
    return min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, _PAUSE_PER_LOOK * look_seconds))


def factor() -> float:
    """Return the factor that the environment names; 1 where it names none.

    Raises:
        RigError: it is no number, or below 1.
    """
    said = os.environ.get(VARIABLE, "") or "1"
    try:
        number = float(said)
    except ValueError:
        number = math.nan
    if not 1.0 <= number < math.inf:
        raise RigError(f"{VARIABLE}={said}: it is a factor on all waits of the rig, 1 or more, such as 3")
    return number
