"""Enrolment and attestation: what a device asks for, what it gets. Blocking; safe to use from any thread.

The order of the checks is: who asks, may it, is the proof good. Whatever the outcome of an attestation, its session is
used up first, so that nothing can be tried twice.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import structlog

from cloud_bridge.config import Identity
from cloud_bridge.identity.approvals import list_approvals
from cloud_bridge.identity.attestation import key_digest, software_key
from cloud_bridge.identity.checks import Checks
from cloud_bridge.identity.claims import Claim, check_claim, id_of_ek, id_of_token, use_claim
from cloud_bridge.identity.contentkeys import ContentKeys, sealed_box
from cloud_bridge.identity.credential import SECRET_BYTES, make_credential
from cloud_bridge.identity.database import Database, Transaction
from cloud_bridge.identity.devices import (
    Device,
    find_device,
    hold_device,
    note_certificate,
    put_device,
    revoke_certificates,
    update_device,
)
from cloud_bridge.identity.endorsement import TrustedRoots, spki_of
from cloud_bridge.identity.errors import AuthorityError, RefusedError
from cloud_bridge.identity.events import Happening, note
from cloud_bridge.identity.issuer import CertificateRequest, Issued, Issuer, csr_key, life_from, utc
from cloud_bridge.identity.metrics import IdentityMetrics
from cloud_bridge.identity.sessions import Pending, Session, open_session, take_session
from gateway.wire.identity import (
    AttestRequest,
    Challenge,
    ChallengeRequest,
    Credential,
    EnrolRequest,
    Granted,
    Refusal,
    Trust,
    spiffe_id,
)
from gateway.wire.times import rfc3339

log = structlog.get_logger()

_CLOCK_OFF_NS: Final = 300 * 1_000_000_000
"""A device whose clock is off by more than this is told about: its certificates would soon fail to hold."""

_AUTHORITY_RETRY_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Anchors:
    """Whom devices must trust: PEM, and the SHA-256 of the first of them."""

    bundle_pem: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Endorsement:
    """What an enrolment says about the TPM behind it."""

    digest: str = ""
    trusted: bool = False
    credential: Credential | None = None
    secret: bytes | None = None


class IdentityService:
    """Answers devices."""

    def __init__(
        self,
        settings: Identity,
        database: Database,
        metrics: IdentityMetrics,
        *,
        issuer: Issuer,
        anchors: Anchors,
        keys: ContentKeys,
        roots: TrustedRoots | None = None,
        clock: Callable[[], int] = time.time_ns,
        checks: Checks | None = None,
    ) -> None:
        """Prepare. roots: of TPM makers; None: a claim token alone vouches for the TPM. checks: default all."""
        self._settings = settings
        self._database = database
        self._issuer = issuer
        self._anchors = anchors
        self._keys = keys
        self._metrics = metrics
        self._roots = roots
        self._clock = clock
        self._checks = checks or Checks()

    def trust(self) -> Trust:
        """Tell whom devices must trust."""
        now_ns = self._clock()
        return Trust(
            trust_domain=self._settings.trust_domain,
            bundle=self._anchors.bundle_pem,
            fingerprint=self._anchors.fingerprint,
            at=rfc3339(now_ns),
            at_ns=now_ns,
        )

    def enrol(self, request: EnrolRequest) -> Challenge:
        """Begin the enrolment of a device, or its re-enrolment with the same TPM.

        Raises:
            RefusedError: not like this; nothing has changed.
            StoreError: the database cannot be used now.
        """
        if request.level == "software":
            self._check_software_allowed()
            software_key(request.ak_public)
            endorsement = _Endorsement()
        else:
            endorsement = self._endorsement(request)
        now_ns = self._clock()
        secret = endorsement.secret
        pending = Pending(
            purpose="enrol",
            level=request.level,
            ak_public=request.ak_public,
            pcrs=self._pcrs(request.level),
            ek_digest=endorsement.digest,
            ek_trusted=endorsement.trusted,
            secret_digest=None if secret is None else hashlib.sha256(secret).hexdigest(),
            version=request.version,
        )
        with self._database.transaction(durable=False) as tx:
            claim, notice = self._claim(tx, request, pending, now_ns)
            pending = msgspec.structs.replace(pending, claim=None if claim is None else claim.id, notice=notice)
            session = self._open(tx, request.gateway, pending, now_ns)
        return self._challenge(session, now_ns, endorsement.credential)

    def challenge(self, request: ChallengeRequest) -> Challenge:
        """Begin the attestation of a device that is enrolled.

        Raises:
            RefusedError: it is not enrolled, or it is revoked.
            StoreError: the database cannot be used now.
        """
        now_ns = self._clock()
        with self._database.transaction(durable=False) as tx:
            device = find_device(tx, request.gateway)
            if device is None:
                raise RefusedError("unknown-device", f"{request.gateway} is not enrolled; enrol it with a claim token")
            _check_not_revoked(device)
            if device.level == "software":
                self._check_software_allowed()
            pending = Pending(
                purpose="renew",
                level=device.level,
                ak_public=device.ak_public,
                pcrs=self._pcrs(device.level),
                ek_digest=device.ek_digest,
                ek_trusted=device.ek_trusted,
                version=request.version,
            )
            session = self._open(tx, request.gateway, pending, now_ns)
        return self._challenge(session, now_ns, None)

    def attest(self, request: AttestRequest, address: str) -> Granted:
        """Judge a proof, and give a certificate and the content keys for it.

        Raises:
            RefusedError: the proof is not good; the session is used up.
            StoreError: the database cannot be used now.
            IdentityError: the authority or a key cannot be used.
        """
        with self._metrics.attest_seconds.time():
            now_ns = self._clock()
            with self._database.transaction(durable=False) as tx:
                states = [approval.state for approval in list_approvals(tx)]
                try:
                    session: Session | RefusedError = take_session(tx, request.session, request.gateway, now_ns)
                except RefusedError as error:
                    session = error  # a session that has expired is used up all the same
            if isinstance(session, RefusedError):
                raise session
            key = csr_key(request.csr)
            sealed_box(request.recipient)  # refuses one that is none, before anything is signed
            if session.pending.level == "software":
                self._check_software_allowed()
            attested, state = self._checks.judge(session, request, states)
            life = life_from(
                utc(now_ns),
                seconds=self._settings.certificate_seconds,
                backdate_seconds=self._settings.backdate_seconds,
            )
            name = spiffe_id(self._settings.trust_domain, request.gateway)
            issued = self._certified(CertificateRequest(request.gateway, name, request.csr, key, life))
            device = replace(
                _device(session, request, now_ns),
                address=address,
                state="" if state is None else state.name,
                resets=0 if attested is None else attested.quote.reset_count,
                firmware="" if attested is None else f"{attested.quote.firmware_version:016x}",
            )
            with self._database.transaction() as tx:
                self._keep(tx, session, device, issued, now_ns)
                keys = self._keys.usable(tx)
            grants = self._keys.wrap_for(request.gateway, request.recipient, keys)
        self._metrics.attested.labels(device.level).inc()
        not_after_ns = int(issued.not_after.timestamp()) * 1_000_000_000
        return Granted(
            certificate_chain=issued.chain_pem.decode("ascii"),
            spiffe_id=name,
            not_before_ns=int(issued.not_before.timestamp()) * 1_000_000_000,
            not_after=rfc3339(not_after_ns),
            not_after_ns=not_after_ns,
            renew_at_ns=(now_ns + not_after_ns) // 2,
            bundle=self._anchors.bundle_pem,
            grants=grants,
            state=device.state,
            notice=session.pending.notice,
            at=rfc3339(now_ns),
            at_ns=now_ns,
        )

    def refuse(self, error: RefusedError, gateway: str, address: str) -> Refusal:
        """Remember a refusal and put it into words.

        Raises:
            StoreError: the database cannot be used now.
        """
        self._metrics.refused.labels(error.code).inc()
        happening = Happening(gateway, error.code, address, error.message, error.evidence, error.proven)
        with self._database.transaction() as tx:
            refusal_id, is_new = note(tx, happening, self._clock())
        if is_new:
            log.warning(
                "identity_refused",
                gateway=gateway,
                code=error.code,
                address=address,
                refusal=refusal_id,
                why=str(error),
            )
        return Refusal(
            code=error.code,
            message=error.message,
            refusal_id=refusal_id,
            pcrs=list(error.pcrs),
            retry_after_seconds=error.retry_after_seconds,
        )

    # ---- who asks, and may it ----------------------------------------------------------------------

    def _check_software_allowed(self) -> None:
        if not self._settings.allow_software:
            raise RefusedError(
                "software-not-allowed",
                "this bridge takes devices with a TPM only; for development there is `identity.allow_software: true`",
            )

    def _pcrs(self, level: str) -> list[int]:
        return sorted(set(self._settings.pcrs)) if level == "tpm" else []

    def _endorsement(self, request: EnrolRequest) -> _Endorsement:
        ak = self._checks.attestation_key(request.ak_public)
        ek = self._checks.endorsement_key(request.ek_public)
        if self._roots is not None:
            self._roots.check(ek, request.ek_certificates, utc(self._clock()))
        secret = secrets.token_bytes(SECRET_BYTES)
        credential = make_credential(ek, ak.name, secret)
        return _Endorsement(key_digest(spki_of(ek.key)), self._roots is not None, credential, secret)

    def _claim(self, tx: Transaction, request: EnrolRequest, pending: Pending, now_ns: int) -> tuple[Claim | None, str]:
        """Find what allows this enrolment: a claim, or None for a device that proves to be the one that is known.

        With it come words for the device's people, where a claim was brought and is not what counts.
        """
        known = find_device(tx, request.gateway)
        claim, fault = None, None
        if request.claim_token is not None:
            try:
                claim = check_claim(tx, id_of_token(request.claim_token), request.gateway, now_ns)
            except RefusedError as error:
                fault = error
        elif pending.ek_trusted:  # only a certificate says that there is a TPM around this key
            try:
                claim = check_claim(tx, id_of_ek(pending.ek_digest), request.gateway, now_ns)
            except RefusedError as error:
                fault = error if error.code != "claim-unknown" else None
        if known is not None and (claim is None or not claim.replaces):
            _check_not_revoked(known, fault)
            if not self._checks.hardware(known, pending):
                raise RefusedError(
                    "other-tpm",
                    f"{request.gateway} is enrolled with another TPM: a cloned disk, or a board that was replaced;"
                    f" `cloud-bridge identity token create {request.gateway} --replace` lets this one take its place"
                    f"{_of_the_claim(fault)}",
                    evidence={"enrolled_ek": known.ek_digest, "presented_ek": pending.ek_digest},
                )
            return None, _not_needed(request, fault)
        if claim is None:
            raise fault or RefusedError(
                "claim-needed",
                f"{request.gateway} is not enrolled: `cloud-bridge identity token create {request.gateway}` makes"
                " a claim token for it",
                evidence={"presented_ek": pending.ek_digest},
            )
        return claim, ""

    def _certified(self, request: CertificateRequest) -> Issued:
        """Have the authority sign; a device that gets nothing has lost nothing but this session, and comes back."""
        try:
            return self._issuer.certify(request)
        except AuthorityError as error:
            self._metrics.authority_failed.labels(error.fault).inc()
            raise RefusedError(
                "unavailable",
                "the authority that signs certificates gave none; `cloud-bridge identity events` has the reason",
                evidence={"authority": str(error)},
                retry_after_seconds=_AUTHORITY_RETRY_SECONDS,
            ) from error

    # ---- what is kept ------------------------------------------------------------------------------

    def _keep(self, tx: Transaction, session: Session, device: Device, issued: Issued, now_ns: int) -> None:
        pending = session.pending
        until_ns = int(issued.not_after.timestamp()) * 1_000_000_000
        device = replace(device, certified_until_ns=until_ns)
        if pending.purpose == "renew":
            if not update_device(tx, device):
                _check_not_revoked(find_device(tx, device.gateway))
                raise RefusedError(
                    "other-tpm", f"{device.gateway} was enrolled anew meanwhile; ask for a new challenge"
                )
        else:
            self._enrolled(tx, pending, device, now_ns)
        if device.clock_off_ns is not None and abs(device.clock_off_ns) > _CLOCK_OFF_NS:
            seconds = round(device.clock_off_ns / 1e9)
            detail = "the device's clock is off; it should take the time of the answer as its own"
            happening = Happening(device.gateway, "clock-off", device.address, detail, {}, proven=True)
            if note(tx, happening, now_ns)[1]:
                log.warning("identity_clock_off", gateway=device.gateway, seconds=seconds)
        if not note_certificate(tx, device.gateway, issued, now_ns):
            raise _known_serial(issued.serial)

    def _enrolled(self, tx: Transaction, pending: Pending, device: Device, now_ns: int) -> None:
        """Keep a device. What `enrol` has found may have changed since: all of it is looked at again."""
        known = hold_device(tx, device.gateway)
        if pending.claim is not None:
            claim = use_claim(tx, pending.claim, device.gateway, now_ns)
            kind = "enrolled" if known is None else "replaced"
            if known is not None:
                if not claim.replaces:
                    raise RefusedError(
                        "other-tpm",
                        f"{device.gateway} was enrolled meanwhile, and this claim is for a"
                        " name that is free; enrol again",
                    )
                revoke_certificates(tx, device.gateway, now_ns)
        else:
            # It was the known device when the session was opened; it must still be.
            if known is None or not self._checks.hardware(known, pending):
                raise RefusedError("other-tpm", f"{device.gateway} was enrolled anew meanwhile; enrol again")
            _check_not_revoked(known)
            kind = "re-enrolled"
            device = replace(device, enrolled_ns=known.enrolled_ns)
        put_device(tx, device)
        detail = f"level {device.level}, boot state {device.state or 'not measured'}"
        evidence = {"ek": device.ek_digest} if device.ek_digest else {}
        note(tx, Happening(device.gateway, kind, device.address, detail, evidence, proven=True), now_ns)
        self._metrics.enrolled.labels(device.level).inc()
        log.info(
            "identity_enrolled", gateway=device.gateway, how=kind, security=device.level, ek_trusted=device.ek_trusted
        )

    def _open(self, tx: Transaction, gateway: str, pending: Pending, now_ns: int) -> Session:
        return open_session(tx, gateway, pending, now_ns, self._settings.challenge_seconds)

    def _challenge(self, session: Session, now_ns: int, credential: Credential | None) -> Challenge:
        return Challenge(
            session=session.id,
            nonce=session.nonce,
            expires_seconds=float(self._settings.challenge_seconds),
            at=rfc3339(now_ns),
            at_ns=now_ns,
            pcrs=session.pending.pcrs,
            credential=credential,
        )


def _known_serial(serial: str) -> RefusedError:
    # A list of revoked certificates, and this bridge's memory of them, know certificates by nothing else.
    why = f"gave the serial number {serial} a second time; it must draw serial numbers at random (RFC 5280, 4.1.2.2)"
    return RefusedError(
        "unavailable",
        "the authority that signs certificates gave none that can be used",
        evidence={"authority": why},
        retry_after_seconds=_AUTHORITY_RETRY_SECONDS,
    )


def _check_not_revoked(device: Device | None, fault: RefusedError | None = None) -> None:
    """Refuse a device that was revoked; fault: of the claim with which it wanted to come back."""
    if device is not None and device.revoked_ns is not None:
        why = device.revoked_why or "no reason given"
        raise RefusedError("revoked-device", f"{device.gateway} was revoked: {why}{_of_the_claim(fault)}")


def _of_the_claim(fault: RefusedError | None) -> str:
    return "" if fault is None else f". The claim that it brings does not help: {fault.message}"


def _not_needed(request: EnrolRequest, fault: RefusedError | None) -> str:
    """Say what became of a claim that a device has brought which needs none."""
    if request.claim_token is None:
        return ""
    known = f"{request.gateway} is enrolled with this very hardware, so the claim was not needed"
    if fault is None:
        return f"{known}: it is still good; `cloud-bridge identity token drop {request.gateway}` takes it back"
    # No refusal: where the answer to the first try was lost, the claim that comes again was used by this device.
    return (
        f"{known}, and it would not have been good ({fault.message}); if another device was meant, give it a claim for "
        "its own name: `cloud-bridge identity token create NAME`"
    )


def _device(session: Session, request: AttestRequest, now_ns: int) -> Device:
    pending = session.pending
    return Device(
        gateway=session.gateway,
        level=pending.level,
        ek_digest=pending.ek_digest,
        ek_trusted=pending.ek_trusted,
        ak_public=pending.ak_public,
        recipient=request.recipient,
        state="",
        version=pending.version,
        address="",
        enrolled_ns=now_ns,
        attested_ns=now_ns,
        certified_until_ns=now_ns,
        clock_off_ns=None if request.clock_ns is None else request.clock_ns - now_ns,
    )
