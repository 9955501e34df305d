"""The identity that is in force, for whoever opens a connection. Safe to use from any thread."""

import ssl
import threading

from gateway.identity.clock import TrustedClock
from gateway.identity.errors import IdentityError
from gateway.identity.tls import Svid, client_context


class Credentials:
    """Certificate, key and trust bundle; replaced at every renewal."""

    def __init__(self, clock: TrustedClock) -> None:
        """Nothing is there until the first attestation."""
        self._clock = clock
        self._lock = threading.Lock()
        self._svid: Svid | None = None
        self._bundle = ""

    def replace(self, svid: Svid, bundle: str) -> None:
        """Use these from now on; connections that stand are not touched."""
        with self._lock:
            self._svid, self._bundle = svid, bundle

    @property
    def not_after_ns(self) -> int:
        """When the certificate is over, UTC; 0 when there is none."""
        with self._lock:
            return self._svid.not_after_ns if self._svid is not None else 0

    @property
    def spiffe_id(self) -> str:
        """Who the certificate says this is; "" when there is none."""
        with self._lock:
            return self._svid.spiffe_id if self._svid is not None else ""

    @property
    def valid(self) -> bool:
        """Whether there is a certificate that is not over yet."""
        return self._clock.now_ns() < self.not_after_ns

    def tls_context(self) -> ssl.SSLContext:
        """Make a context that shows the certificate and believes the bundle.

        Raises:
            IdentityError: there is no certificate, or it is over: the bridge has not been reached.
        """
        with self._lock:
            svid, bundle = self._svid, self._bundle
        if svid is None:
            raise IdentityError("this gateway has no certificate yet; see `gateway identity status`")
        if self._clock.now_ns() >= svid.not_after_ns:
            raise IdentityError(
                "this gateway's certificate is over and could not be renewed; see `gateway identity status`"
            )
        return client_context(bundle, self._clock, svid)
