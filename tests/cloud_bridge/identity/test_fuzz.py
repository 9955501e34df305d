"""Whatever bytes come, the parsers raise what they declare and nothing else."""

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_bridge.identity.attestation import (
    attestation_key,
    endorsement_key,
    software_key,
    verify_quote,
    verify_software,
)
from cloud_bridge.identity.contentkeys import sealed_box
from cloud_bridge.identity.endorsement import TrustedRoots
from cloud_bridge.identity.errors import IdentityError, MalformedStructureError, RefusedError
from cloud_bridge.identity.issuer import csr_key, new_key, utc
from cloud_bridge.identity.states import read_pcrs
from cloud_bridge.identity.structures import read_public, read_quote, read_signature
from gateway.wire.identity import PATH_ATTEST, PATH_ENROL, EnrolRequest, Refusal
from gateway.wire.messages import decode, encode
from tests.cloud_bridge.identity.kit import START, Desk, desk_at
from tests.simulators.attested_device import SoftTpm, csr_of
from tests.simulators.endorsement_ca import EndorsementCa

TPM = SoftTpm()
RSA = SoftTpm(rsa_ek=True, rsa_ak=True)
MAKER = EndorsementCa(utc(START))
ROOTS = TrustedRoots([MAKER.root])
EK = endorsement_key(TPM.ek_public)
AK = attestation_key(TPM.ak_public)
QUOTE, SIGNATURE = TPM.quote(bytes(32), [4, 7, 11])
CSR = csr_of(new_key())
CHAIN = MAKER.certify(TPM.ek_key)


@st.composite
def bent(draw: st.DrawFn, valid: bytes) -> bytes:
    """Bytes close to valid ones: some changed, some dropped, some added."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 2)):
            case 0 if data:
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at : at + draw(st.integers(1, 20))]
            case _:
                data[at:at] = draw(st.binary(max_size=20))
    return bytes(data)


def near(*valid: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(st.binary(max_size=300), *(bent(one) for one in valid))


@settings(max_examples=400)
@given(near(TPM.ek_public, TPM.ak_public, RSA.ek_public, RSA.ak_public))
def test_keys_of_a_tpm(data: bytes) -> None:
    with contextlib.suppress(MalformedStructureError):
        read_public(data)
    for read in (attestation_key, endorsement_key, software_key):
        with contextlib.suppress(RefusedError):
            read(data)


@settings(max_examples=400)
@given(near(QUOTE), near(SIGNATURE, RSA.sign(b"x")), st.dictionaries(st.integers(0, 23), st.binary(max_size=40)))
def test_quotes(quote: bytes, signature: bytes, values: dict[int, bytes]) -> None:
    with contextlib.suppress(MalformedStructureError):
        read_quote(quote)
    with contextlib.suppress(MalformedStructureError):
        read_signature(signature)
    with contextlib.suppress(RefusedError):
        verify_quote(AK, quote, signature, expected=bytes(32), pcrs=frozenset({4, 7, 11}), values=values)


@given(near(QUOTE), st.dictionaries(st.integers(0, 23), st.binary(min_size=30, max_size=33)))
def test_what_the_right_key_has_signed_but_is_no_good_quote(quote: bytes, values: dict[int, bytes]) -> None:
    try:
        verify_quote(
            AK,
            quote,
            TPM.sign(quote),
            expected=bytes(32),
            pcrs=frozenset({4, 7, 11}),
            values=TPM.pcrs([4, 7, 11]) | values,
        )
    except RefusedError:
        return
    # Bytes of the clock and the firmware, and registers nobody asked for, may differ in a good quote.
    assert len(quote) == len(QUOTE)


@settings(max_examples=300)
@given(near(CSR))
def test_certificate_requests(data: bytes) -> None:
    with contextlib.suppress(RefusedError):
        csr_key(data)


@settings(max_examples=300)
@given(st.lists(near(*CHAIN), max_size=3))
def test_endorsement_certificates(chain: list[bytes]) -> None:
    with contextlib.suppress(RefusedError):
        ROOTS.check(EK, chain, utc(START))


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_proofs_and_recipients(signature: bytes, recipient: bytes) -> None:
    with pytest.raises(RefusedError):
        verify_software(new_key().public_key(), signature, b"message")
    with contextlib.suppress(RefusedError):
        sealed_box(recipient)


@given(st.one_of(st.binary(max_size=100), st.text(max_size=100).map(str.encode)))
def test_files_with_registers(data: bytes) -> None:
    with contextlib.suppress(IdentityError):
        read_pcrs(data)


@pytest.fixture(scope="module")
def one_desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with desk_at(tmp_path_factory.mktemp("fuzz")) as desk:
        yield desk


REQUEST = encode(
    EnrolRequest(gateway="dock-7", level="tpm", ak_public=TPM.ak_public, ek_public=TPM.ek_public, ek_certificates=CHAIN)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([PATH_ENROL, PATH_ATTEST]), near(REQUEST))
def test_the_listener_answers_every_body_with_a_message_of_the_contract(one_desk: Desk, path: str, body: bytes) -> None:
    answer = one_desk.request("POST", path, body)
    assert answer.status_code in {400, 403, 409}
    assert decode(answer.content, Refusal).code != "unavailable"
