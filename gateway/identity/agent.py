"""Keeps the identity fresh: enrols once, attests, renews at half-life, and comes back after weeks offline."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import structlog

from gateway.config import Identity
from gateway.errors import GatewayError
from gateway.identity.clock import MAX_SKEW_SECONDS, TrustedClock, boot_clock_ns
from gateway.identity.credentials import Credentials
from gateway.identity.errors import (
    ClaimUnfitError,
    IdentityError,
    IdentityRefusedError,
    IdentityUnreachableError,
    IdentityUntrustedError,
)
from gateway.identity.keys import Attestor
from gateway.identity.record import IdentityFiles, IdentityRecord, read_claim_file
from gateway.identity.server import IdentityServer
from gateway.identity.tls import Svid, fingerprint_of, first_of, fresh_key
from gateway.moments import happens
from gateway.threads import in_thread
from gateway.wire.identity import (
    AttestRequest,
    Challenge,
    ChallengeRequest,
    ClaimCode,
    EnrolRequest,
    Grant,
    Granted,
    claim_code,
)

log = structlog.get_logger()

State = Literal["starting", "needs-claim", "valid", "unreachable", "refused", "failed"]

FIRST_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 300.0
"""Between two tries while the bridge cannot be reached or the certificate is about to end."""
REFUSED_RETRY_SECONDS: Final = 60.0
MAX_REFUSED_RETRY_SECONDS: Final = 900.0
"""Between two tries while the bridge says no: a person has to change something."""
_CLAIM_LOOK_SECONDS: Final = 2.0
_RENEW_JITTER: Final = 0.1
_BROKEN_SESSION: Final = frozenset({"session-unknown", "session-used", "session-expired"})
_WORTH_A_NOTICE: Final = frozenset({"refused", "failed"})
_ENROL_AGAIN: Final = frozenset({"unknown-device", "wrong-key"})
_OTHER_KEY: Final = "quote-signature"


@dataclass(frozen=True, slots=True)
class IdentityStatus:
    """How it stands, for a status page."""

    state: State = "starting"
    level: str = ""
    spiffe_id: str = ""
    expires_in_seconds: float | None = None  # of the certificate; negative when it is over
    renewals: int = 0  # since the start
    refusals: int = 0  # by the bridge, since the start
    reason: str = ""  # of the last failure, until the next success
    boot_state: str = ""  # the approved one that the bridge found
    clock_skew_seconds: float = 0.0
    notice: str = ""  # what the bridge has said beside the last certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What is told of what happens. Called on the event loop; `granted` may wait, the others must not."""

    renewed: Callable[[], None]
    granted: Callable[[Sequence[Grant]], Awaitable[None]]
    noticed: Callable[[str, Literal["info", "warning", "error"], str], None]  # code, severity, detail


class IdentityAgent:
    """One gateway's identity. Its methods belong to the event loop; keys are asked on a thread of their own."""

    def __init__(
        self,
        settings: Identity,
        gateway: str,
        files: IdentityFiles,
        attestor: Attestor,
        outcomes: Outcomes,
        *,
        version: str = "",
        build_ns: int = 0,
        clock: TrustedClock | None = None,
        monotonic_ns: Callable[[], int] = boot_clock_ns,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Read what is known from earlier starts; nothing is asked yet.

        Args:
            settings: where the bridge is, and the claim.
            gateway: who this is.
            files: where the record is kept.
            attestor: the keys.
            outcomes: what is told.
            version: of the program, for the bridge's list of devices.
            build_ns: when the program was built: it cannot be earlier than that.
            clock: default one over the machine's clocks, with the latest time known.
            monotonic_ns: for the time of the next renewal; goes on while the machine sleeps.
            draw: uniform in [0, 1), so that a fleet does not renew in one second.

        Raises:
            ConfigError: the URL is none.
        """
        self._settings = settings
        self._gateway = gateway
        self._files = files
        self._attestor = attestor
        self._outcomes = outcomes
        self._version = version
        self._monotonic_ns = monotonic_ns
        self._draw = draw
        self._is_read = False
        self._record = IdentityRecord()
        self._build_ns = build_ns
        self.clock = clock or TrustedClock(build_ns)
        try:
            self._read_record()
        except IdentityError as error:  # no reason to stop watching: it is read again before anybody is asked
            log.warning("identity_record_not_read", error=str(error))
        self.credentials = Credentials(self.clock)
        self._server = IdentityServer(settings.url, self.clock)
        self._state: State = "starting"
        self._reason = ""
        self._boot_state = ""
        self._notice = ""
        self._renewals = self._refusals = 0
        self._failures = 0
        self._told = ""
        self._clock_told = False
        self._claim_seen: str | None = None
        self._claim_fault = ""  # why the code that lies there is left aside
        self._is_bridge_behind = False
        self._again = asyncio.Event()

    # ---- use -----------------------------------------------------------------------------------------

    def status(self) -> IdentityStatus:
        """Tell how it stands."""
        over_ns = self.credentials.not_after_ns
        return IdentityStatus(
            state=self._state,
            level=self._attestor.level,
            spiffe_id=self.credentials.spiffe_id,
            expires_in_seconds=round((over_ns - self.clock.now_ns()) / 1e9, 1) if over_ns else None,
            renewals=self._renewals,
            refusals=self._refusals,
            reason=self._reason,
            boot_state=self._boot_state,
            clock_skew_seconds=round(self.clock.skew_seconds, 1),
            notice=self._notice,
        )

    def renew_now(self) -> None:
        """Do not wait for half-life."""
        self._again.set()

    async def run(self) -> None:
        """Keep the identity fresh until cancelled."""
        while True:
            try:
                wait = await self._round()
            except IdentityRefusedError as error:
                wait = self._refused(error)
            except IdentityUnreachableError as error:
                wait = self._failed("unreachable", error, FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS)
            except GatewayError as error:  # a TPM that does not answer, an authority that is not ours, a full disk
                wait = self._failed("failed", error, FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS)
            await self._rest(wait)

    # ---- one round -------------------------------------------------------------------------------------

    async def _round(self) -> float:
        """Attest once; returns how long to wait for the next time, in seconds."""
        if not self._is_read:
            await in_thread("identity", self._read_record)
        believes = bool(self._record.bundle) and self._record.url == self._server.url
        try:
            code = self._claim()
            # A code of another bridge than the one that is believed, or of one that was rebuilt.
            other = believes and code is not None and not self._is_of(code)
            if (other or not believes) and not await self._learn_trust(code, anew=other):
                return _CLAIM_LOOK_SECONDS
        except (ClaimUnfitError, IdentityUntrustedError) as error:
            if not believes or not self._record.enrolled:
                raise
            self._leave_aside(error)  # a wrong code is no reason to lose a certificate that is good
            code = None
        else:
            self._claim_fault = ""
        try:
            granted = await self._attested(code)
        except IdentityUntrustedError:
            if code is None or not self._record.enrolled:
                raise
            # Whoever brings a code to a device that is enrolled vouches for a bridge that was rebuilt, and against a
            # time that a wrong clock of the bridge has left here.
            await self._learn_trust(code, anew=True)
            granted = await self._attested(code)
        return await self._accept(granted)

    def _leave_aside(self, error: IdentityError) -> None:
        """Go on with the bridge that is believed; the code stays, for it may be meant for another configuration."""
        if self._claim_fault != str(error):
            log.warning("claim_left_aside", reason=str(error))
        self._claim_fault = str(error)

    def _read_record(self) -> None:
        """Read what is known from earlier starts. Raises IdentityError: not now."""
        self._record = self._files.read()
        self._is_read = True
        self.clock.begin(self._record.floor_ns)

    def _is_of(self, code: ClaimCode) -> bool:
        """Tell whether a code names the authority that this device believes."""
        return fingerprint_of(first_of(self._record.bundle)) == code.fingerprint.lower()

    async def _attested(self, code: ClaimCode | None) -> Granted:
        try:
            return await self._attest(code)
        except IdentityRefusedError as error:
            if error.code == _OTHER_KEY and self._record.enrolled and code is None:
                # Not the attestation key that was enrolled: its file was lost. The TPM can vouch for the new one.
                log.warning("identity_enrols_again", reason=str(error))
                return await self._attest(code, enrol=True)
            if error.code not in _BROKEN_SESSION:
                raise
            return await self._attest(code)  # the answer to the first try was lost, or took too long

    def _claim(self) -> ClaimCode | None:
        text = self._claim_seen = self._files.read_claim()
        if text is None and self._settings.claim_file is not None and not self._record.enrolled:
            text = read_claim_file(self._settings.claim_file)
        if text is None:
            return None
        code = claim_code(text)
        if code is None:
            raise ClaimUnfitError("the claim code is not understood; copy it whole, it begins with sluice1.")
        return code

    async def _learn_trust(self, code: ClaimCode | None, *, anew: bool = False) -> bool:
        """Find out whom to believe; False while nobody has said."""
        fingerprint = code.fingerprint if code is not None else self._settings.fingerprint
        if fingerprint is None:
            self._tell("needs-claim", "not enrolled: run `gateway identity enrol CODE` with a code of the cloud bridge")
            return False
        trust = await self._server.trust(fingerprint)
        if anew:
            self.clock.forget(self._build_ns)
        await self._write(
            IdentityRecord(
                url=self._server.url,
                bundle=trust.bundle,
                trust_domain=trust.trust_domain,
                level=self._attestor.level,
                floor_ns=self.clock.floor_ns,
            )
        )
        return True

    async def _attest(self, code: ClaimCode | None, *, enrol: bool = False) -> Granted:
        challenge, enrolling = await self._challenge(code, enrol=enrol)
        key, csr = fresh_key(self._gateway, self._record.trust_domain)
        recipient = await in_thread("identity", self._attestor.recipient)
        secret = None
        if enrolling and challenge.credential is not None:
            credential = challenge.credential
            secret = await in_thread("identity", lambda: self._attestor.activate(credential))
        proof = await in_thread("identity", lambda: self._attestor.prove(challenge, csr, recipient, self._gateway))
        granted = await self._server.attest(
            self._record.bundle,
            AttestRequest(
                session=challenge.session,
                gateway=self._gateway,
                csr=csr,
                recipient=recipient,
                signature=proof.signature,
                quote=proof.quote,
                pcrs={str(number): value for number, value in (proof.pcrs or {}).items()},
                secret=secret,
                clock_ns=max(0, self.clock.wall_ns()),
            ),
        )
        self._install(granted, key)
        return granted

    async def _challenge(self, code: ClaimCode | None, *, enrol: bool) -> tuple[Challenge, bool]:
        """Return a challenge, and whether it is that of an enrolment. enrol: also without need."""
        known_here = self._record.enrolled and self._record.level == self._attestor.level
        if known_here and code is None and not enrol:
            try:
                known = ChallengeRequest(gateway=self._gateway, level=self._attestor.level, version=self._version)
                return await self._server.challenge(self._record.bundle, known), False
            except IdentityRefusedError as error:
                if error.code not in _ENROL_AGAIN:
                    raise
                log.warning("identity_enrols_again", reason=str(error))
        keys = await in_thread("identity", self._attestor.enrolment_keys)
        request = EnrolRequest(
            gateway=self._gateway,
            level=self._attestor.level,
            ak_public=keys.ak_public,
            ek_public=keys.ek_public,
            ek_certificates=list(keys.ek_certificates),
            claim_token=code.token if code is not None else None,
            version=self._version,
        )
        return await self._server.enrol(self._record.bundle, request), True

    def _install(self, granted: Granted, key: bytes) -> None:
        self._look_at_bridges_clock(granted.at_ns)
        self.clock.learn(granted.at_ns)
        # Its life counts from now: where the bridge's clock was once ahead, time here is ahead of its certificates.
        ahead_ns = max(0, self.clock.now_ns() - granted.at_ns)
        svid = Svid(
            chain=granted.certificate_chain.encode("utf-8"),
            key=key,
            spiffe_id=granted.spiffe_id,
            not_before_ns=granted.not_before_ns,
            not_after_ns=granted.not_after_ns + ahead_ns,
        )
        self.credentials.replace(svid, granted.bundle)

    async def _accept(self, granted: Granted) -> float:
        """Write down what must outlive this process, and tell the others."""
        await self._write(
            IdentityRecord(
                url=self._server.url,
                bundle=granted.bundle,
                trust_domain=self._record.trust_domain,
                enrolled=True,
                level=self._attestor.level,
                floor_ns=self.clock.floor_ns,
            )
        )
        if not self._claim_fault:
            self._files.drop_claim()
            self._claim_seen = None  # the same code, left again, is a new wish
        await self._outcomes.granted(granted.grants)
        self._renewals += 1
        self._failures = 0
        self._boot_state = granted.state
        if granted.notice:
            log.warning("identity_notice", notice=granted.notice)
        self._notice = granted.notice or (self._claim_fault and f"the claim code was left aside: {self._claim_fault}")
        self._check_clock()
        if self._told in _WORTH_A_NOTICE:
            self._outcomes.noticed("identity-restored", "info", f"{self._gateway} has a certificate again")
        self._told = ""
        self._state, self._reason = "valid", ""
        log.info("identity_renewed", spiffe_id=granted.spiffe_id, not_after=granted.not_after, state=granted.state)
        self._outcomes.renewed()
        half_life = max(0.0, (granted.renew_at_ns - granted.at_ns) / 1e9)
        return max(FIRST_RETRY_SECONDS, half_life * (1.0 - _RENEW_JITTER * self._draw()))

    async def _write(self, record: IdentityRecord) -> None:
        await in_thread("identity", lambda: self._files.write(record))
        self._record = record

    # ---- when it does not work ---------------------------------------------------------------------------

    def _refused(self, error: IdentityRefusedError) -> float:
        self._refusals += 1
        wait = self._failed("refused", error, REFUSED_RETRY_SECONDS, MAX_REFUSED_RETRY_SECONDS)
        if error.code == "too-many-requests":
            wait = FIRST_RETRY_SECONDS
        return max(wait, error.retry_after_seconds or 0.0)

    def _failed(self, state: State, error: GatewayError, first: float, longest: float) -> float:
        self._failures += 1
        self._tell(state, str(error))
        delay = min(longest, first * 2.0 ** min(self._failures - 1, 30))
        return delay * (0.5 + 0.5 * self._draw())

    def _tell(self, state: State, reason: str) -> None:
        """Log a condition when it begins or changes; the cloud hears of what is not just the network."""
        self._reason = reason
        if self._state != state or self._told != state:
            log.warning("identity_not_fresh", state=state, reason=reason)
            if state in _WORTH_A_NOTICE:
                self._outcomes.noticed(f"identity-{state}", "error", reason)
            self._told = state
        self._state = state

    def _look_at_bridges_clock(self, told_ns: int) -> None:
        """Notice that the bridge tells an earlier time than it once did, which stays the floor here."""
        behind = (self.clock.floor_ns - told_ns) / 1e9
        if behind > MAX_SKEW_SECONDS and not self._is_bridge_behind:
            detail = (
                f"the bridge's clock is {behind:.0f} s behind what it once told this device. Certificates are used all "
                "the same; leases of models count by the later time until then. A new claim code "
                "(`cloud-bridge identity token create NAME --replace`) makes this device forget it"
            )
            log.warning("bridge_clock_behind", seconds=round(behind))
            self._outcomes.noticed("bridge-clock-behind", "warning", detail)
        elif self._is_bridge_behind and behind <= MAX_SKEW_SECONDS:
            log.info("bridge_clock_no_longer_behind")
        self._is_bridge_behind = behind > MAX_SKEW_SECONDS

    def _check_clock(self) -> None:
        doubtful = self.clock.doubtful
        if doubtful and not self._clock_told:
            detail = (
                f"this machine's clock is {self.clock.skew_seconds:+.0f} s off the bridge's; its time is used instead"
            )
            log.warning("clock_wrong", skew_seconds=round(self.clock.skew_seconds, 1))
            self._outcomes.noticed("clock-wrong", "warning", detail)
        elif self._clock_told and not doubtful:
            log.info("clock_right_again")
        self._clock_told = doubtful

    async def _rest(self, seconds: float) -> None:
        """Wait until the time has come, by the clock that goes on while the machine sleeps, or a new claim has."""
        until_ns = self._monotonic_ns() + int(seconds * 1e9)
        while (left := (until_ns - self._monotonic_ns()) / 1e9) > 0:
            if await happens(self._again, min(left, _CLAIM_LOOK_SECONDS)):
                break
            claim = self._files.read_claim()
            if claim is not None and claim != self._claim_seen:
                break
        self._again.clear()
