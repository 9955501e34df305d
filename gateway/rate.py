"""How often something happens."""


class Rate:
    """Events per second over roughly the last ten seconds (exponentially weighted)."""

    _SPAN_NS = 10_000_000_000

    def __init__(self) -> None:
        self._rate = 0.0
        self._count = 0
        self._since_ns: int | None = None

    def tick(self, now_ns: int) -> None:
        """Count one, at this monotonic time in nanoseconds."""
        if self._since_ns is None:
            self._since_ns = now_ns
            return
        self._count += 1
        if now_ns - self._since_ns >= 1_000_000_000:
            self._fold(now_ns)

    def per_second(self, now_ns: int) -> float:
        """Return the rate; it dies away while nothing happens."""
        if self._since_ns is not None and now_ns - self._since_ns >= 2_000_000_000:
            self._fold(now_ns)
        return self._rate

    def _fold(self, now_ns: int) -> None:
        since_ns = now_ns if self._since_ns is None else self._since_ns
        elapsed_ns = max(1, now_ns - since_ns)
        latest = self._count * 1e9 / elapsed_ns
        share = 1.0 if self._rate == 0 else min(1.0, elapsed_ns / self._SPAN_NS)
        self._rate += (latest - self._rate) * share
        self._count, self._since_ns = 0, now_ns
