"""A distribution as counts between fixed edges: small, and adding two of the same edges loses nothing."""

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of values below, between and above `edges`, which rise: one count more than there are edges.

    `counts[0]` are the values below `edges[0]`, `counts[i]` those in [edges[i - 1], edges[i]), the last those from the
    last edge on. A value that is not a number is counted nowhere.
    """

    edges: tuple[float, ...]
    counts: tuple[Count, ...]

    def __post_init__(self) -> None:
        """Check that it is one.

        Raises:
            ValueError: edges that do not rise, or not one count more than edges.
        """
        if not self.edges or any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("the edges of a histogram must rise")
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges need {len(self.edges) + 1} counts, not {len(self.counts)}")
