"""Who may still be answered: a certificate can be revoked, or end, while its connection stays open.

TLS looks at a certificate once, when a connection begins, and this listener gives it no revocation list. So each
request is held against what the bridge has revoked, as it was a few seconds ago at most, and so is each block of a
long answer.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from cloud_bridge.errors import StoreError
from cloud_bridge.identity.database import Clock, Database
from cloud_bridge.identity.devices import revoked_certificates

log = structlog.get_logger()

FRESH_SECONDS: Final = 10.0
"""How old the list of what was revoked may be."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The certificate that a connection has shown."""

    serial: int
    until_ns: int


def peer_of(certificate: Mapping[str, Any] | None) -> Peer | None:
    """Read what `ssl.SSLObject.getpeercert` tells; None where none was asked for."""
    if not certificate:
        return None
    return Peer(int(certificate["serialNumber"], 16), ssl.cert_time_to_seconds(certificate["notAfter"]) * 10**9)


class Admission:
    """Knows what was revoked. Belongs to the event loop."""

    def __init__(self, database: Database, clock: Clock, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Take where certificates are kept; nothing is read before the first request."""
        self._database = database
        self._clock = clock
        self._monotonic = monotonic
        self._revoked: frozenset[int] = frozenset()
        self._read_at: float | None = None
        self._reading = asyncio.Lock()
        self._failing = False
        self._told: set[int] = set()

    async def refusal(self, peer: Peer | None) -> str:
        """Say why a connection gets no answer; "" if it does. Without a certificate only loopback is let in at all."""
        if peer is None:
            return ""
        if peer.until_ns <= self._clock():
            return "the certificate has ended; connect with the present one"
        async with self._reading:
            if self._read_at is None or self._monotonic() - self._read_at >= FRESH_SECONDS:
                await self._read()
        if peer.serial not in self._revoked:
            return ""
        if peer.serial not in self._told:
            self._told = {peer.serial, *(self._told & self._revoked)}
            log.warning("registry_refuses_revoked", serial=f"{peer.serial:x}")
        return "the certificate was revoked"

    async def _read(self) -> None:
        """Read the list; while the database is away, the last one counts: what is served is signed and sealed."""
        self._read_at = self._monotonic()
        try:
            self._revoked = await asyncio.to_thread(self._serials)
        except StoreError as error:
            if not self._failing:
                log.warning("registry_revocations_unknown", error=str(error), consequence="the last known count")
            self._failing = True
            return
        if self._failing:
            log.info("registry_revocations_known_again")
        self._failing = False

    def _serials(self) -> frozenset[int]:
        with self._database.transaction(durable=False) as tx:
            return frozenset(int(one.serial, 16) for one in revoked_certificates(tx, self._clock()))
