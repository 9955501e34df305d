"""How long to wait before the next connection attempt. Pure: the random draw comes in."""

from dataclasses import dataclass
from typing import Literal

Lane = Literal["unreachable", "busy", "refused"]
"""Why a connection is not there.

* `unreachable`: nobody answers, most likely our own link; nobody listens; or only something does that ends the
  connection before a broker has said anything. Nobody is burdened by asking often, and a short cap is what makes
  records flow again soon after the link heals or the broker runs again.
* `busy`: the broker is there, but closes or is overloaded. All its clients come back at once, so the wait doubles up
  to the long cap.
* `refused`: the broker does not want us as we are (login, certificate, client id). Only a person changes that.
"""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with jitter: a uniform draw below a doubling window, with a floor if a broker is there."""

    base_seconds: float = 0.5
    unreachable_cap_seconds: float = 5.0
    cap_seconds: float = 30.0
    busy_share: float = 0.25
    refused_floor_seconds: float = 5.0
    refused_cap_seconds: float = 60.0

    def delay(self, lane: Lane, failures: int, draw: float) -> float:
        """Return the seconds to wait after so many failures in a row; `draw` is uniform in 0..1."""
        doubled = self.base_seconds * 2.0 ** min(max(failures - 1, 0), 16)
        match lane:
            case "unreachable":
                return draw * min(doubled, self.unreachable_cap_seconds)
            case "busy":
                # A row of short draws would ask an overloaded broker more often than once a second.
                return (self.busy_share + (1.0 - self.busy_share) * draw) * min(doubled, self.cap_seconds)
            case "refused":
                # No draw may lead below one attempt a second: a refusal is answered at once, so nothing else slows us.
                window = min(2 * doubled, self.refused_cap_seconds - self.refused_floor_seconds)
                return self.refused_floor_seconds + draw * max(window, 0.0)
