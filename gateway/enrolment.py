"""The identity as the running gateway uses it: the agent, its keys in the vault, and what brokers are shown."""

import ssl
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from gateway.config import Broker, Config, Identity
from gateway.identity.agent import IdentityAgent, IdentityStatus, Outcomes
from gateway.identity.credentials import Credentials
from gateway.identity.errors import IdentityError
from gateway.identity.record import IdentityFiles
from gateway.report import IdentityReport
from gateway.sealing import SealedModels, Severity
from gateway.threads import in_thread
from gateway.uplink.endpoint import CredentialsAwaitedError, FileAccess
from gateway.vault.attestor import open_attestor
from gateway.vault.vault import Vault
from gateway.wire.identity import Grant

log = structlog.get_logger()

DOUBT_SECONDS: Final = 60.0
"""Between two certificates that are asked for because a broker did not take the last one."""


class IdentityAccess(FileAccess):
    """Access by the certificate of the hour where the configuration wishes it, by files elsewhere."""

    def __init__(
        self, credentials: Credentials, renew: Callable[[], None], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Take what the agent keeps fresh, and what has it ask for a new certificate at once."""
        self._credentials = credentials
        self._renew = renew
        self._monotonic = monotonic
        self._renewed_at = -DOUBT_SECONDS

    def awaited(self, broker: Broker) -> str:
        """Say that there is no certificate, or that it is over; see `gateway.uplink.endpoint.Access`."""
        if not broker.identity or self._credentials.valid:
            return ""
        missing = "is over" if self._credentials.not_after_ns else "is not there yet"
        return f"waiting for the identity: the certificate {missing}; see `gateway identity status`"

    def context(self, broker: Broker) -> ssl.SSLContext:
        """Make the TLS context of a new connection with the certificate that counts now."""
        if not broker.identity:
            return super().context(broker)
        try:
            return self._credentials.tls_context()
        except IdentityError as error:
            raise CredentialsAwaitedError(f"waiting for the identity: {error}") from error

    def doubted(self, broker: Broker) -> None:
        """Ask for another certificate: by the clock of the broker this one may be over, though it is not by ours.

        That happens to a machine that was suspended, clock and all. Belongs to the event loop.
        """
        now = self._monotonic()
        if broker.identity and self._credentials.valid and now - self._renewed_at >= DOUBT_SECONDS:
            self._renewed_at = now
            log.info("identity_doubted", broker=broker.url)
            self._renew()


class Enrolment:
    """One gateway's membership of its fleet. Its methods belong to the event loop."""

    def __init__(
        self,
        config: Config,
        settings: Identity,
        vault: Vault,
        models: SealedModels,
        *,
        version: str,
        renewed: Callable[[], None],
        noticed: Callable[[str, Severity, str], None],
    ) -> None:
        """Read what is known from earlier starts; nothing is asked yet.

        Args:
            config: of the whole gateway.
            settings: its part about the identity.
            vault: proves this device to the bridge.
            models: gets the keys that the bridge grants.
            version: of the program, for the bridge's list of devices.
            renewed: called on the event loop when there is a new certificate.
            noticed: called there with the code, the severity and the words of what the cloud should hear of.

        Raises:
            ConfigError: the URL is none.
        """
        self._models = models
        directory = config.gateway.state_directory
        self._agent = IdentityAgent(
            settings,
            config.gateway.id,
            IdentityFiles(directory),
            open_attestor(config.vault, vault, directory),
            Outcomes(renewed=renewed, granted=self._granted, noticed=noticed),
            version=version,
        )
        self.access = IdentityAccess(self._agent.credentials, self._agent.renew_now)

    def now_ns(self) -> int:
        """Return the time as far as the bridge has told it, UTC; from any thread."""
        return self._agent.clock.now_ns()

    async def run(self) -> None:
        """Keep the identity fresh until cancelled.

        Raises:
            VaultError: the vault cannot be initialised.
        """
        await in_thread("vault", self._models.prepare)
        await self._agent.run()

    def status(self) -> IdentityStatus:
        """Tell how it stands, for `gateway identity`."""
        return self._agent.status()

    def report(self) -> IdentityReport:
        """Tell how it stands, for `gateway status`."""
        status = self._agent.status()
        return IdentityReport(
            state=status.state,
            level=status.level,
            spiffe_id=status.spiffe_id,
            expires_in_seconds=status.expires_in_seconds,
            renewals=status.renewals,
            refusals=status.refusals,
            reason=status.reason,
            boot_state=status.boot_state,
        )

    def tls_context(self) -> ssl.SSLContext:
        """Make a context that shows the certificate of the hour and believes the bridge's authority; any thread.

        Raises:
            IdentityError: there is no certificate now.
        """
        return self._agent.credentials.tls_context()

    def renew_now(self) -> None:
        """Attest again without waiting for half-life."""
        self._agent.renew_now()

    async def _granted(self, grants: Sequence[Grant]) -> None:
        now_ns = self.now_ns()
        await in_thread("vault", lambda: self._models.accept(grants, now_ns))
