"""How long a rig waits: what is written where the wait is, times SLUICE_RIG_PATIENCE, on a machine with other work.

The times beside the waits are for emulated processors on two cores of their own. Patience lets a test fail later; what
it asserts is the same. What runs in the guest, such as its watchdog, has times of its own, which patience leaves alone.
"""

import math
import os
from typing import Final

from hil.loopback.children import RigError

VARIABLE: Final = "SLUICE_RIG_PATIENCE"
"""The variable of the environment with the factor, 1 or more."""


def patient(seconds: float) -> float:
    """Return how long to wait for what takes so many seconds at most where nothing else runs.

    Raises:
        RigError: the factor is no number, or below 1.
    """
    return seconds * factor()


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
