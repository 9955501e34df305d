"""Which rows may still be rewritten: those that no reader has been given.

A row that was sent must never change: the bridge keeps what it got first. So readers claim what they are about to
look at, and the writer rewrites an eviction record only above everything claimed. Neither waits for the other.
"""

import threading


class Claims:
    """The agreement between readers and writer about one class."""

    def __init__(self, existing: int) -> None:
        self._lock = threading.Lock()
        self._claimed = existing  # what an earlier run stored may have been sent by it
        self._rewriting: int | None = None  # the lowest row of the running transaction that is being rewritten

    def claim(self, highest: int) -> int:
        """Return up to which number a reader may look, `highest` at most; these rows never change again."""
        with self._lock:
            bound = highest if self._rewriting is None else min(highest, self._rewriting - 1)
            self._claimed = max(self._claimed, bound)
            return bound

    def begin_rewrite(self, seq: int) -> bool:
        """Ask to rewrite a row; until `end_rewrite` readers stop below it. False when it was claimed already."""
        with self._lock:
            if seq <= self._claimed:
                return False
            self._rewriting = seq if self._rewriting is None else min(seq, self._rewriting)
            return True

    def end_rewrite(self) -> None:
        """Show everything again, after the commit or the rollback."""
        with self._lock:
            self._rewriting = None
