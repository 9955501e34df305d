"""Who has shown the token: sessions of people, kept in memory, and the comparison itself."""

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable
from typing import Final

SESSION_SECONDS: Final = 12 * 3600
_MAX_SESSIONS: Final = 256


class Gatekeeper:
    """Knows the token and the open sessions; safe to call from any thread.

    Only digests are kept and compared, so that neither the time of a comparison nor a dump of the memory
    tells a session.
    """

    def __init__(self, token: str, monotonic_ns: Callable[[], int]) -> None:
        self._token = _digest(token)
        self._now = monotonic_ns
        self._sessions: dict[bytes, int] = {}  # digest → when it ends, the oldest first
        self._lock = threading.Lock()

    def is_token(self, offered: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(_digest(offered), self._token)

    def open_session(self) -> str:
        """Begin a session; return its secret. The oldest goes when there are too many."""
        secret = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._sessions) >= _MAX_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[_digest(secret)] = self._now() + SESSION_SECONDS * 1_000_000_000
        return secret

    def has_session(self, secret: str) -> bool:
        """Tell whether this is the secret of a session that has not ended."""
        digest = _digest(secret)
        with self._lock:
            ends_at = self._sessions.get(digest)
            if ends_at is not None and ends_at <= self._now():
                del self._sessions[digest]
                return False
            return ends_at is not None

    def end_session(self, secret: str) -> None:
        """End a session; ending one that is not there is harmless."""
        with self._lock:
            self._sessions.pop(_digest(secret), None)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).digest()
