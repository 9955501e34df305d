"""Platform configuration registers (PCRs), bank SHA-256."""

from collections.abc import Sequence
from typing import Final

from gateway.vault.errors import KeyStoreError
from gateway.vault.tpm.connection import Tpm

_AT_ONCE: Final = 8
"""A TPM returns no more in one answer (part 2 §10.9.7, TPML_DIGEST)."""


def read_registers(tpm: Tpm, numbers: Sequence[int]) -> dict[int, bytes]:
    """Return the values of some registers.

    Raises:
        KeyStoreError: this TPM has no bank SHA-256, or not all of these registers in it.
    """
    wanted = sorted(set(numbers))
    values: dict[int, bytes] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        some = wanted[start : start + _AT_ONCE]
        _, _, digests = tpm.esys.pcr_read("sha256:" + ",".join(str(number) for number in some))
        if len(digests) != len(some):
            raise KeyStoreError(
                f"the TPM has no SHA-256 values for the PCRs {some}: switch its SHA-256 bank on in the firmware"
            )
        values.update({number: bytes(digests[at]) for at, number in enumerate(some)})
    return values
