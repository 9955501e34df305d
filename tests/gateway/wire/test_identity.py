"""What both sides compute for themselves: the binding of a quote, the digest of registers, the claim code."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.identity import MAX_BODY_BYTES, ClaimCode, binding, claim_code, pcr_digest, software_message

PARTS = st.tuples(st.binary(max_size=8), st.binary(max_size=8), st.binary(max_size=8), st.text("ab-", max_size=4))


@given(PARTS, PARTS)
def test_two_bindings_are_equal_only_for_equal_parts(
    one: tuple[bytes, bytes, bytes, str], other: tuple[bytes, bytes, bytes, str]
) -> None:
    assert (binding(*one) == binding(*other)) == (one == other)


def test_the_binding_is_frozen() -> None:
    """Devices in the field compute the same."""
    found = binding(bytes(32), b"csr", bytes(range(32)), "dock-7")
    digest = hashlib.sha256()
    for part in (b"sluice identity v1 binding", bytes(32), b"csr", bytes(range(32)), b"dock-7"):
        digest.update(len(part).to_bytes(4, "big") + part)
    assert found == digest.digest()
    assert (
        software_message(bytes(32), b"csr", bytes(range(32)), "dock-7") == b"sluice identity v1 software proof" + found
    )


def test_registers_are_digested_in_ascending_order() -> None:
    low, high = b"\1" * 32, b"\2" * 32
    assert pcr_digest({11: high, 4: low}) == hashlib.sha256(low + high).digest()


def test_a_claim_code_reads_back() -> None:
    code = ClaimCode(token="k7m2x4q6", fingerprint="ab" * 32)
    assert claim_code(f" {code.text()}\n") == code


@pytest.mark.parametrize("text", ["", "k7m2", "sluice1.k7m2", "sluice2.k7m2." + "ab" * 32, "sluice1.." + "ab" * 32])
def test_what_is_no_claim_code_is_none(text: str) -> None:
    assert claim_code(text) is None


def test_an_enrolment_with_the_longest_chain_fits_a_body() -> None:
    assert MAX_BODY_BYTES > 4 * 8192 * 4 / 3
