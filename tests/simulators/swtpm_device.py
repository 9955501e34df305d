"""The TPM of `attested_device` over a real implementation: ESAPI calls to swtpm, as a device would make them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_OBJECT
from tpm2_pytss.types import (
    TPM2B_DATA,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPML_DIGEST_VALUES,
    TPML_PCR_SELECTION,
    TPMT_HA,
    TPMT_SIG_SCHEME,
    TPMT_SYM_DEF,
    TPMU_HA,
)
from tpm2_pytss.utils import NoSuchIndex, create_ek_template

from gateway.wire.identity import Credential
from tests.simulators.attested_device import ActivationError
from tests.simulators.swtpm import Swtpm
from tests.simulators.waiting import wait_for

_ENDORSEMENT = ESYS_TR.RH_ENDORSEMENT


class SwTpm:
    """Keys are made anew from the TPM's seeds for every call, so that no slot stays taken. Knob: `template`."""

    def __init__(self, swtpm: Swtpm, *, template: str = "EK-ECC256") -> None:
        self._where = swtpm.tcti
        self._template = template
        with _connected(self._where) as tpm:
            ek, ek_public = self._ek(tpm)
            ak, ak_public = self._ak(tpm)
            tpm.flush_context(ek)
            tpm.flush_context(ak)
        self.ek_public: bytes = ek_public.publicArea.marshal()
        self.ak_public: bytes = ak_public.publicArea.marshal()
        self._ek_der: bytes = ek_public.to_der()

    @property
    def ek_key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        key = load_der_public_key(self._ek_der)
        assert isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
        return key

    def activate(self, credential: Credential) -> bytes:
        blob, _ = TPM2B_ID_OBJECT.unmarshal(credential.blob)
        secret, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(credential.encrypted_secret)
        with _connected(self._where) as tpm:
            ek, _public = self._ek(tpm)
            ak, _public = self._ak(tpm)
            session = tpm.start_auth_session(
                tpm_key=ESYS_TR.NONE,
                bind=ESYS_TR.NONE,
                session_type=TPM2_SE.POLICY,
                symmetric=TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL),
                auth_hash=TPM2_ALG.SHA256,
            )
            try:
                tpm.policy_secret(_ENDORSEMENT, session, b"", b"", b"", 0)
                opened = tpm.activate_credential(ak, ek, blob, secret, session1=ESYS_TR.PASSWORD, session2=session)
            except Exception as error:
                raise ActivationError from error
            finally:
                for handle in (session, ak, ek):
                    tpm.flush_context(handle)
            return bytes(opened)

    def quote(self, qualifying: bytes, pcrs: list[int]) -> tuple[bytes, bytes]:
        with _connected(self._where) as tpm:
            ak, _public = self._ak(tpm)
            try:
                selection = TPML_PCR_SELECTION.parse(f"sha256:{','.join(map(str, pcrs))}")
                scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
                attest, signature = tpm.quote(ak, selection, TPM2B_DATA(qualifying), scheme)
            finally:
                tpm.flush_context(ak)
            return bytes(attest), signature.marshal()

    def pcrs(self, numbers: list[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        with _connected(self._where) as tpm:
            for number in numbers:  # one at a time: a TPM returns at most eight at once
                _, _, digests = tpm.pcr_read(TPML_PCR_SELECTION.parse(f"sha256:{number}"))
                found[number] = bytes(digests[0])
        return found

    def extend(self, number: int, digest: bytes) -> None:
        values = TPML_DIGEST_VALUES([TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=digest))])
        with _connected(self._where) as tpm:
            tpm.pcr_extend(ESYS_TR(number), values)

    def _ek(self, tpm: ESAPI) -> tuple[Any, Any]:
        _, template = create_ek_template(self._template, _no_nv)
        return self._primary(tpm, template)

    def _ak(self, tpm: ESAPI) -> tuple[Any, Any]:
        attributes = (
            TPMA_OBJECT.FIXEDTPM
            | TPMA_OBJECT.FIXEDPARENT
            | TPMA_OBJECT.SENSITIVEDATAORIGIN
            | TPMA_OBJECT.USERWITHAUTH
            | TPMA_OBJECT.RESTRICTED
            | TPMA_OBJECT.SIGN_ENCRYPT
            | TPMA_OBJECT.NODA
        )
        template = TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=attributes)
        return self._primary(tpm, template)

    def _primary(self, tpm: ESAPI, template: Any) -> tuple[Any, Any]:
        created = tpm.create_primary(TPM2B_SENSITIVE_CREATE(), template, _ENDORSEMENT)
        return created[0], created[1]


@contextmanager
def _connected(where: str) -> Iterator[ESAPI]:
    """Connect; swtpm takes the next connection a moment after the last one has ended."""
    opened: list[ESAPI] = []

    def opens() -> bool:
        try:
            opened.append(ESAPI(where))
        except TSS2_Exception:
            return False
        return True

    wait_for(opens, what="swtpm takes a connection")
    try:
        yield opened[0]
    finally:
        opened[0].close()


def _no_nv(index: Any) -> bytes:
    """The TPM holds no template of its own."""
    raise NoSuchIndex(index)


def ek_certificate(swtpm: Swtpm, index: int) -> bytes:
    """Read the endorsement certificate (DER) that the maker has left in the TPM."""
    with _connected(swtpm.tcti) as tpm:
        handle = tpm.tr_from_tpmpublic(index)
        public, _ = tpm.nv_read_public(handle)
        size = int(public.nvPublic.dataSize)
        data = b""
        while len(data) < size:
            data += bytes(tpm.nv_read(handle, min(1024, size - len(data)), len(data), auth_handle=ESYS_TR.RH_OWNER))
        return data
