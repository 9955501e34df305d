"""An authority outside of the bridge in the place of `LocalCa`: asked by a `Signer`, believed in nothing.

What the bridge keeps for itself is who a device is and whether it may have a certificate at all; the authority has the
key that signs. So each request is looked at before it goes out, and each certificate before it is given to the device
(`issued`). While the authority is away devices keep the certificate they have, and come back.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from cloud_bridge.identity.database import Clock
from cloud_bridge.identity.errors import AuthorityError, IdentityError, RefusedError
from cloud_bridge.identity.issued import ANSWER_CHECKS, AnswerCheck, accept, check_request
from cloud_bridge.identity.issuer import CertificateRequest, Issued, Life, Revoked, crls_of, pem, utc

log = structlog.get_logger()

RequestCheck = Callable[[CertificateRequest], None]
REQUEST_CHECKS: Final[tuple[RequestCheck, ...]] = (check_request,)
PAUSE_SECONDS: Final = 10.0
"""So long nobody asks an authority that has not answered in time: those who wait for it would only keep others out."""

_TURN_SECONDS: Final = 10.0
_FORGOTTEN_SECONDS: Final = 3600.0
_UNREADABLE: Final = (ValueError, TypeError)


class Signer(Protocol):
    """What has an authority sign. Called from several threads; `str()` of it names it in messages."""

    def sign(self, request: CertificateRequest) -> bytes:
        """Have a certificate made; return it with its intermediates as PEM, the device's own first.

        Must come to an end by itself, within 25 s at most: the device waits for 30.

        Raises:
            AuthorityError: there is none; the device asks again.
        """
        ...


class Certificates:
    """A PEM file that somebody else keeps; read again when it has changed. Safe to use from any thread."""

    def __init__(self, file: Path, key: str) -> None:
        """Remember where it is. key: of the configuration, for messages."""
        self._file = file
        self._key = key
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._found: tuple[x509.Certificate, ...] = ()

    def read(self) -> tuple[x509.Certificate, ...]:
        """Return what is in it, at least one.

        Raises:
            IdentityError: it cannot be read.
        """
        with self._lock:
            try:
                now = self._file.stat()
                seen = (now.st_mtime_ns, now.st_size, now.st_ino)
                if seen != self._seen:
                    self._found = tuple(x509.load_pem_x509_certificates(self._file.read_bytes()))
                    self._seen = seen
            except OSError as error:
                raise IdentityError(f"{self._key}: {self._file}: {error.strerror or error}") from error
            except _UNREADABLE as error:
                raise IdentityError(f"{self._key}: {self._file}: {error}; it must hold PEM certificates") from error
            return self._found


class ForeignIssuer:
    """See Issuer. Troubles are told when they begin and when they end."""

    def __init__(
        self,
        signer: Signer,
        anchors: Certificates,
        *,
        revocations: Path | None = None,
        at_once: int = 4,
        clock: Clock = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        request_checks: Sequence[RequestCheck] = REQUEST_CHECKS,
        answer_checks: Sequence[AnswerCheck] = ANSWER_CHECKS,
    ) -> None:
        """Prepare; nobody is asked yet.

        Args:
            signer: has the authority sign.
            anchors: whom brokers believe of devices.
            revocations: the authority's own list, PEM, as something else keeps it in a file.
            at_once: how many may wait for the authority at the same time.
            clock: nanoseconds UTC.
            monotonic: for pauses.
            request_checks: always all; a test leaves them out.
            answer_checks: likewise.
        """
        self._signer = signer
        self._anchors = anchors
        self._revocations = revocations
        self._turns = threading.BoundedSemaphore(at_once)
        self._clock = clock
        self._monotonic = monotonic
        self._request_checks = tuple(request_checks)
        self._answer_checks = tuple(answer_checks)
        self._lock = threading.Lock()
        self._paused_until = 0.0
        self._lists: tuple[x509.CertificateRevocationList, ...] = ()
        self._lists_seen: tuple[object, ...] = ()
        self._failing: dict[str, float] = {}  # gateways that got nothing, and when

    @property
    def bundle_pem(self) -> bytes:
        """See Issuer."""
        return b"".join(pem(one) for one in self._anchors.read())

    @property
    def until(self) -> datetime:
        """See Issuer."""
        return min(one.not_valid_after_utc for one in self._anchors.read())

    @property
    def lists_revoked(self) -> bool:
        """See Issuer."""
        return False  # what it has signed, only the authority can take back

    def certify(self, request: CertificateRequest) -> Issued:
        """See Issuer."""
        for check in self._request_checks:
            check(request)
        try:
            anchors = self._anchors.read()
            with self._turn():
                chain = self._signer.sign(request)
            issued = accept(chain, request, anchors, utc(self._clock()), self._answer_checks)
        except RefusedError:
            raise
        except IdentityError as error:
            self._fares(request.gateway, error)
            raise
        self._fares(request.gateway, None)
        return issued

    def crl(self, revoked: Sequence[Revoked], life: Life) -> bytes | None:  # noqa: ARG002 - as Issuer has it
        """See Issuer. It is the authority's list as it is; what the bridge has revoked is not in it."""
        if self._revocations is None:
            return None
        lists = self._read_lists(self._revocations)
        now = utc(self._clock())
        for one in lists:
            if one.next_update_utc is None or one.next_update_utc <= now:
                raise self._list_fault(
                    f"the list of {one.issuer.rfc4514_string()} was good until {one.next_update_utc}; brokers that"
                    " read it would let nobody in, so they keep the one they have: fetch a new one"
                )
        return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in lists)

    def _read_lists(self, file: Path) -> tuple[x509.CertificateRevocationList, ...]:
        """Read the lists, and check who has signed them, if they or the anchors have changed: they may be long."""
        try:
            now = file.stat()
            seen = (now.st_mtime_ns, now.st_size, now.st_ino, self._anchors.read())
            if seen == self._lists_seen:
                return self._lists
            lists = tuple(x509.load_pem_x509_crl(part) for part in crls_of(file.read_bytes()))
        except OSError as error:
            raise self._list_fault(error.strerror or str(error)) from error
        except _UNREADABLE as error:
            raise self._list_fault(f"{error}; it must hold revocation lists, PEM") from error
        if not lists:
            raise self._list_fault("holds no revocation list, PEM")
        for one in lists:
            self._check_signer(one)
        self._lists, self._lists_seen = lists, seen
        return lists

    def _check_signer(self, one: x509.CertificateRevocationList) -> None:
        signers = [anchor for anchor in self._anchors.read() if anchor.subject == one.issuer]
        if not any(one.is_signature_valid(anchor.public_key()) for anchor in signers):  # type: ignore[arg-type]  # any kind of key
            raise self._list_fault(
                f"the list of {one.issuer.rfc4514_string()} is signed by nobody in `identity.issuer.trust_anchors`;"
                " put the certificate that signs lists there too"
            )

    def _list_fault(self, what: str) -> AuthorityError:
        return AuthorityError("unfit", f"identity.issuer.revocations: {self._revocations}: {what}")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for one of the places; nobody waits for an authority that has just kept everybody waiting."""
        self._check_pause()
        if not self._turns.acquire(timeout=_TURN_SECONDS):
            raise AuthorityError(
                "away", f"{self._signer} is asked too much at once; it is slow, or raise `identity.issuer.at_once`"
            )
        try:
            self._check_pause()
            yield
        except AuthorityError as error:
            if error.fault == "away":
                with self._lock:
                    self._paused_until = max(self._paused_until, self._monotonic() + PAUSE_SECONDS)
            raise
        finally:
            self._turns.release()

    def _check_pause(self) -> None:
        with self._lock:
            left = self._paused_until - self._monotonic()
        if left > 0:
            raise AuthorityError("failed", f"{self._signer} did not answer a moment ago, and is asked in {left:.0f} s")

    def _fares(self, gateway: str, error: IdentityError | None) -> None:
        """Tell when certificates fail to come, and when every gateway that got none has one, or has not come back."""
        now = self._monotonic()
        with self._lock:
            was = bool(self._failing)
            self._failing.pop(gateway, None)
            self._failing = {name: at for name, at in self._failing.items() if now - at < _FORGOTTEN_SECONDS}
            if error is not None:
                self._failing[gateway] = now
            is_now = bool(self._failing)
        if is_now and not was:
            log.error("authority_failing", authority=str(self._signer), gateway=gateway, error=str(error))
        elif was and not is_now:
            log.info("authority_works_again", authority=str(self._signer))
