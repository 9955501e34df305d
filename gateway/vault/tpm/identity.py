"""What a TPM proves to the bridge: which chip this is, in which state it booted, and how far its counter is.

Structures leave here marshalled as part 2 of the TPM specification says: TPMT_PUBLIC, TPMS_ATTEST and TPMT_SIGNATURE
without a size in front, as `gateway.wire.identity` wants them. See part 1 §24 (credential protection), §33 (quotes).
"""

import contextlib
import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from gateway.vault.errors import DamagedKeyFileError, KeyStoreError
from gateway.vault.policy import NV_COUNTER_BYTES
from gateway.vault.tpm.codes import is_integrity
from gateway.vault.tpm.connection import Connection, Tpm
from gateway.vault.tpm.objects import (
    attestation_key,
    endorsement_p256,
    endorsement_rsa,
    public_of,
)
from gateway.vault.tpm.registers import read_registers

EkKind = Literal["rsa2048", "p256"]

# EK credential profile §2.2.1.4 and §2.2.1.5: low range, then high range.
_CERTIFICATES: Final[dict[int, str]] = {
    0x01C0_0002: "rsa2048",
    0x01C0_000A: "p256",
    0x01C0_0012: "rsa2048",
    0x01C0_0014: "p256",
    0x01C0_0016: "p384",
    0x01C0_0018: "p521",
    0x01C0_001A: "sm2",
    0x01C0_001C: "rsa3072",
    0x01C0_001E: "rsa4096",
}
_NV_HANDLES: Final = 0x0100_0000
_READ_AT_ONCE: Final = 512
_TRIES: Final = 3
_OTHER_CREDENTIAL: Final = "the credential was made for another attestation key or another TPM; enrol again"


class AttestationKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The public half of an attestation key, and all that is kept on disk of it: no secret, no use elsewhere.

    The TPM derives the key anew from its endorsement seed and this area whenever it is needed, so it takes up no
    room in the TPM, and a copy of the disk in another TPM derives another key.
    """

    seed: bytes  # 32 random bytes; no secret
    public: bytes  # TPMT_PUBLIC

    @property
    def stored(self) -> bytes:
        """What to keep on disk, for `TpmIdentity.load_ak`."""
        return msgspec.json.encode(self)

    @property
    def name(self) -> bytes:
        """Its TPM name."""
        return b"\x00\x0b" + hashlib.sha256(self.public).digest()


@dataclass(frozen=True, slots=True)
class EkCertificate:
    """A certificate of an endorsement key that the manufacturer left in the TPM."""

    index: int
    kind: str  # `rsa2048`, `p256`, `p384`, …
    der: bytes


@dataclass(frozen=True, slots=True)
class Quote:
    """Registers, signed by an attestation key."""

    attest: bytes  # TPMS_ATTEST
    signature: bytes  # TPMT_SIGNATURE
    pcrs: dict[int, bytes]  # the values behind the digest in `attest`


@dataclass(frozen=True, slots=True)
class CounterProof:
    """The counter, signed by an attestation key."""

    attest: bytes  # TPMS_ATTEST
    signature: bytes  # TPMT_SIGNATURE
    value: int


class TpmIdentity:
    """The TPM's side of enrolment and attestation. Calls may be made from any thread; each has its deadline."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ek_certificates(self) -> list[EkCertificate]:
        """Return the endorsement keys' certificates, those of kinds that `ek_public` offers first; may be none."""
        return self._connection.call("reading the EK certificates", _certificates)

    def ek_kind(self) -> EkKind:
        """Return the kind of endorsement key to use: one with a certificate, RSA where there is no telling."""
        kinds = {certificate.kind for certificate in self.ek_certificates()}
        return "p256" if "p256" in kinds and "rsa2048" not in kinds else "rsa2048"

    def ek_public(self, kind: EkKind | None = None) -> bytes:
        """Return the public endorsement key, TPMT_PUBLIC. Deriving an RSA key takes a real chip seconds."""
        chosen = kind or self.ek_kind()

        def work(tpm: Tpm) -> bytes:
            handle, public = _primary(tpm, _ek_template(chosen))
            with tpm.flushed(handle):
                return public

        return self._connection.call("reading the endorsement key", work)

    def create_ak(self) -> AttestationKey:
        """Make a new attestation key in the endorsement hierarchy, where quotes tell resets as they are."""

        def work(tpm: Tpm) -> AttestationKey:
            seed = secrets.token_bytes(32)
            handle, public = _primary(tpm, attestation_key(seed))
            with tpm.flushed(handle):
                return AttestationKey(seed=seed, public=public)

        return self._connection.call("making an attestation key", work)

    def load_ak(self, stored: bytes) -> AttestationKey:
        """Read a stored attestation key (`AttestationKey.stored`), and make sure that this TPM has it.

        Raises:
            DamagedKeyFileError: it is none.
            KeyStoreError: it has not: the file is another device's, or the TPM was exchanged.
        """
        try:
            key = msgspec.json.decode(stored, type=AttestationKey)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DamagedKeyFileError(f"the attestation key on disk is damaged: {error}") from error

        def work(tpm: Tpm) -> None:
            with _derived(tpm, key):
                pass

        self._connection.call("loading the attestation key", work)
        return key

    def activate_credential(
        self, key: AttestationKey, credential_blob: bytes, encrypted_secret: bytes, kind: EkKind | None = None
    ) -> bytes:
        """Open a credential that was made for this TPM's endorsement key and this attestation key.

        Args:
            key: the attestation key.
            credential_blob: TPM2B_ID_OBJECT, with its size.
            encrypted_secret: TPM2B_ENCRYPTED_SECRET, with its size.
            kind: of the endorsement key that the credential was made for; default `ek_kind()`.

        Raises:
            KeyStoreError: it was made for another TPM or another attestation key.
        """
        chosen = kind or self.ek_kind()

        def work(tpm: Tpm) -> bytes:
            pytss = tpm.pytss
            try:
                blob = pytss.TPM2B_ID_OBJECT.unmarshal(credential_blob)[0]
                secret = pytss.TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted_secret)[0]
            except tpm.library.failure as error:
                raise KeyStoreError(f"the credential is malformed: {error}") from error
            endorsement, _ = _primary(tpm, _ek_template(chosen))
            password = pytss.ESYS_TR.PASSWORD
            with tpm.flushed(endorsement), _derived(tpm, key) as ak, _endorsement_session(tpm) as session:
                try:
                    answer = tpm.esys.activate_credential(ak, endorsement, blob, secret, password, session)
                except tpm.library.failure as error:
                    if is_integrity(int(error.rc)):  # type: ignore[attr-defined]  # untyped library
                        raise KeyStoreError(_OTHER_CREDENTIAL) from error
                    raise
            return bytes(answer)

        return self._connection.call("activating a credential", work)

    def quote(self, key: AttestationKey, qualifying_data: bytes, pcrs: Sequence[int]) -> Quote:
        """Have the TPM sign the registers, bank SHA-256, together with at most 64 bytes of the caller's."""
        numbers = sorted(set(pcrs))

        def work(tpm: Tpm) -> Quote:
            with _derived(tpm, key) as ak:
                for _ in range(_TRIES):
                    selection = "sha256:" + ",".join(str(number) for number in numbers)
                    attest, signature = tpm.esys.quote(ak, selection, qualifying_data)
                    values = read_registers(tpm, numbers)
                    signed = bytes(attest)[-hashlib.sha256().digest_size :]  # pcrDigest ends it, part 2 §10.12.1
                    if signed == hashlib.sha256(b"".join(values[number] for number in numbers)).digest():
                        return Quote(bytes(attest), bytes(signature.marshal()), values)
            raise KeyStoreError("the registers changed while they were quoted; try again")

        return self._connection.call("quoting the registers", work)

    def nv_certify(self, key: AttestationKey, index: int, qualifying_data: bytes = b"") -> CounterProof:
        """Have the TPM sign the value of the counter: a fencing token that nobody else can make."""

        def work(tpm: Tpm) -> CounterProof:
            scheme = tpm.pytss.TPMT_SIG_SCHEME(scheme=tpm.pytss.TPM2_ALG.NULL)
            counter = tpm.esys.tr_from_tpmpublic(index)
            with _derived(tpm, key) as ak:
                attest, signature = tpm.esys.nv_certify(ak, counter, qualifying_data, scheme, NV_COUNTER_BYTES)
            value = bytes(attest)[-NV_COUNTER_BYTES:]  # nvContents ends it, part 2 §10.12.8
            return CounterProof(bytes(attest), bytes(signature.marshal()), int.from_bytes(value, "big"))

        return self._connection.call("certifying the counter", work)


def _certificates(tpm: Tpm) -> list[EkCertificate]:
    there = [index for index in tpm.handles(_NV_HANDLES) if index in _CERTIFICATES]
    found = [EkCertificate(index, _CERTIFICATES[index], _read_nv(tpm, index)) for index in there]
    return sorted(found, key=lambda certificate: (certificate.kind not in ("rsa2048", "p256"), certificate.index))


def _read_nv(tpm: Tpm, index: int) -> bytes:
    handle = tpm.esys.tr_from_tpmpublic(index)
    public, _ = tpm.esys.nv_read_public(handle)
    size = int(public.nvPublic.dataSize)
    parts = [
        bytes(tpm.esys.nv_read(handle, min(_READ_AT_ONCE, size - offset), offset))
        for offset in range(0, size, _READ_AT_ONCE)
    ]
    return _without_padding(b"".join(parts))


def _without_padding(der: bytes) -> bytes:
    """Cut a certificate to the length that it names: manufacturers fill the index up with 0xff or zeros."""
    if len(der) >= 4 and der[:2] == b"\x30\x82":
        return der[: 4 + int.from_bytes(der[2:4], "big")]
    return der


def _ek_template(kind: EkKind) -> bytes:
    return endorsement_p256() if kind == "p256" else endorsement_rsa()


def _primary(tpm: Tpm, template: bytes) -> tuple[Any, bytes]:
    made = tpm.esys.create_primary(None, public_of(tpm, template), tpm.pytss.ESYS_TR.ENDORSEMENT)
    return made[0], bytes(made[1].publicArea.marshal())


@contextlib.contextmanager
def _derived(tpm: Tpm, key: AttestationKey) -> Iterator[Any]:
    """Load an attestation key, if this TPM is the one that made it."""
    handle, public = _primary(tpm, attestation_key(key.seed))
    with tpm.flushed(handle):
        if public != key.public:
            raise KeyStoreError(
                "this TPM has not the attestation key of this state directory: the disk comes from another device, the "
                "TPM was exchanged, or vault/ak.json is damaged. Without that file the gateway enrols again by itself, "
                "if the bridge knows this TPM"
            )
        yield handle


@contextlib.contextmanager
def _endorsement_session(tpm: Tpm) -> Iterator[Any]:
    """Open a session that fulfils the policy of endorsement keys: PolicySecret(TPM_RH_ENDORSEMENT)."""
    pytss, none = tpm.pytss, tpm.pytss.ESYS_TR.NONE
    cipher = pytss.TPMT_SYM_DEF.parse("aes128cfb")
    session = tpm.esys.start_auth_session(none, none, pytss.TPM2_SE.POLICY, cipher, pytss.TPM2_ALG.SHA256)
    with tpm.flushed(session):
        tpm.esys.policy_secret(pytss.ESYS_TR.ENDORSEMENT, session)
        yield session
