"""Response codes of TPM and tss, and what they mean to a person (part 2 §6.6)."""

from typing import Final

from gateway.vault.errors import KeyStoreError, KeyStoreUnavailableError

POLICY_FAIL: Final = 0x99D  # TPM_RC_POLICY_FAIL, first session
POLICY_FALSE: Final = 0x126  # TPM_RC_POLICY: the counter's comparison is false
PCR_CHANGED: Final = 0x128
VALUE_REFUSED: Final = 0x1C4  # PolicyAuthorize: the session's digest is not the approved one
NV_UNINITIALIZED: Final = 0x14A
NV_SPACE: Final = 0x14B
AUTH_UNAVAILABLE: Final = 0x12F
INTEGRITY: Final = 0x1DF  # of a blob: another TPM's, or damaged
POLICY_CODES: Final = frozenset({POLICY_FAIL, POLICY_FALSE, PCR_CHANGED, VALUE_REFUSED, AUTH_UNAVAILABLE})

_LAYER: Final = 0xFF0000
_TCTI_LAYER: Final = 0x0A0000
_LATER: Final = {
    0x101: "is in failure mode: restart the machine",
    0x100: "was not started: the firmware, or the resource manager, should have done so",
    0x902: "has no slot left for objects: another program holds them; use /dev/tpmrm0",
    0x903: "has no slot left for sessions: another program holds them; use /dev/tpmrm0",
    0x905: "has no session handle left: another program holds them; use /dev/tpmrm0",
    0x908: "asks to try again",
    0x920: "limits writes to its memory for now",
    0x922: "asks to try again",
    0x923: "cannot write its memory for now",
}
_SAID: Final = {
    NV_SPACE: "has no room left in its memory (NV): remove an index that is not needed (tpm2_getcap handles-nv-index)",
    0x921: "is locked after wrong passwords: wait, or tpm2_dictionarylockout --clear-lockout. Nothing of the vault "
    "needs a password; another program used wrong ones",
    0x9A2: "wants a password for its owner hierarchy; the vault works with none, as TPMs are delivered",
    0x98E: "wants another password for its owner hierarchy; the vault works with none, as TPMs are delivered",
    INTEGRITY: "does not know this sealed key: it was sealed by another TPM, or the file is damaged",
    NV_UNINITIALIZED: "has a counter that was never counted: run `gateway vault init`",
}


class TpmResponseError(KeyStoreError):
    """The TPM refused a command; `code` says why."""

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        super().__init__(message)


def translated(what: str, tcti: str, code: int, text: str) -> KeyStoreError:
    """Return the error for a response code.

    Args:
        what: what was being done, `reading the counter`.
        tcti: where the TPM is.
        code: the response code.
        text: what tss says of it.
    """
    if code & _LAYER == _TCTI_LAYER:
        return KeyStoreUnavailableError(f"{what}: the TPM at {tcti} does not answer ({text})")
    if code in _LATER:
        return KeyStoreUnavailableError(f"{what}: the TPM at {tcti} {_LATER[code]}")
    said = _SAID.get(code) or f"refuses: {text}"
    return TpmResponseError(f"{what}: the TPM at {tcti} {said} (code {code:#x})", code)


def is_integrity(code: int) -> bool:
    """Tell whether a blob was refused as foreign or damaged, whatever parameter it was."""
    return code < 0x1000 and code & 0x80 != 0 and code & 0x3F == INTEGRITY & 0x3F  # the TPM's own, format one
