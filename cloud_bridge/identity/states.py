"""Approved boot states: which values of the PCRs a device may have. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from cloud_bridge.identity.errors import IdentityError, RefusedError
from gateway.wire.identity import MAX_PCR

_HEX_DIGITS: Final = 64


@dataclass(frozen=True, slots=True)
class BootState:
    """A name for a set of register values (number → 32 bytes, bank SHA-256)."""

    name: str
    pcrs: Mapping[int, bytes]

    def differing(self, pcrs: Mapping[int, bytes]) -> tuple[int, ...]:
        """Return the registers whose values are not those of this state; one that is missing differs."""
        return tuple(number for number, value in sorted(self.pcrs.items()) if pcrs.get(number) != value)


def matching(states: Sequence[BootState], pcrs: Mapping[int, bytes]) -> BootState:
    """Return the approved state that a device is in.

    Raises:
        RefusedError: `no-approved-state` or `wrong-pcr`, which names the registers that differ from the nearest.
    """
    evidence = {str(number): value.hex() for number, value in sorted(pcrs.items())}
    if not states:
        raise RefusedError(
            "no-approved-state",
            "no boot state is approved yet;"
            " `cloud-bridge identity states add NAME --from-refusal ID` approves this one",
            evidence=evidence,
            proven=True,
        )
    nearest = min(states, key=lambda state: (len(state.differing(pcrs)), state.name))
    wrong = nearest.differing(pcrs)
    if not wrong:
        return nearest
    registers = ", ".join(map(str, wrong))
    raise RefusedError(
        "wrong-pcr",
        f"PCR {registers}: not as in {nearest.name!r}, the nearest approved boot state",
        pcrs=wrong,
        evidence=evidence,
        proven=True,
    )


def read_pcrs(document: bytes) -> dict[int, bytes]:
    """Read register values from JSON: {"pcrs": {"11": "<64 hexadecimal digits>", …}}, or the inner table alone.

    Raises:
        IdentityError: it is something else.
    """
    try:
        found = msgspec.json.decode(document, type=dict[str, dict[str, str] | str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IdentityError(f"not a table of PCR values: {error}") from error
    inner = found.get("pcrs", found)
    if not isinstance(inner, dict):
        raise IdentityError('"pcrs" must be a table of PCR values')
    return pcrs_of({key: value for key, value in inner.items() if isinstance(value, str)})


def pcrs_of(table: Mapping[str, str]) -> dict[int, bytes]:
    """Read register values from texts.

    Raises:
        IdentityError: a number or a value cannot be used, or there is none.
    """
    pcrs: dict[int, bytes] = {}
    for key, text in table.items():
        digits = text.removeprefix("0x")
        try:
            number, value = int(key), bytes.fromhex(digits)
        except ValueError as error:
            raise IdentityError(f"PCR {key!r}: {error}") from error
        if not 0 <= number <= MAX_PCR or len(digits) != _HEX_DIGITS or len(value) != _HEX_DIGITS // 2:
            raise IdentityError(f"PCR {key!r}: expected a number up to {MAX_PCR} and {_HEX_DIGITS} hexadecimal digits")
        pcrs[number] = value
    if not pcrs:
        raise IdentityError("no PCR values are given")
    return pcrs
