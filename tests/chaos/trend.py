"""Whether a figure grows: the Theil-Sen slope of a series, its confidence interval, and what it comes to in a month.

The slope is the median of the slopes between all pairs of samples; a jump or an outlier hardly moves it. The interval
is the one of Sen (1968), from the variance of Kendall's statistic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MONTH_SECONDS: Final = 30 * 86_400.0
MOST_SAMPLES: Final = 400
"""Longer series are thinned out: the number of pairs grows with the square."""
NORMAL_95: Final = 1.96


@dataclass(frozen=True, slots=True)
class Trend:
    """A slope in units a second, and the interval that holds it with 95 %."""

    slope: float
    low: float
    high: float
    seconds: float  # how long was looked

    def grows_by(self) -> float:
        """Return what the lower end of the interval comes to in 30 days; 0 when it is not a growth for sure."""
        return max(0.0, self.low * MONTH_SECONDS)

    def leaks(self, cap: float, settling: float = 0.0) -> bool:
        """Tell whether the series surely grows beyond a cap within 30 days.

        `settling` is what may be added once while looking, as a process that warms up does: the shorter the look, the
        larger the leak must be to be told from that.
        """
        return self.low > max(cap / MONTH_SECONDS, settling / self.seconds)


def trend_of(times: Sequence[float], values: Sequence[float]) -> Trend:
    """Return the trend of a series of at least four samples, times in seconds."""
    step = -(-len(times) // MOST_SAMPLES)
    times, values = times[::step], values[::step]
    count = len(times)
    slopes = sorted(
        (values[later] - values[earlier]) / (times[later] - times[earlier])
        for earlier in range(count)
        for later in range(earlier + 1, count)
    )
    pairs = len(slopes)
    spread = NORMAL_95 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, math.floor((pairs - spread) / 2))
    high = min(pairs - 1, math.ceil((pairs + spread) / 2))
    median = (slopes[(pairs - 1) // 2] + slopes[pairs // 2]) / 2
    return Trend(median, slopes[low], slopes[high], times[-1] - times[0])
