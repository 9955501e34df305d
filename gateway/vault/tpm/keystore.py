"""The key store in a TPM: secrets sealed under whatever states of the machine the policy key approves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import structlog

from gateway.vault import policy
from gateway.vault.approvals import Approvals, Approved
from gateway.vault.errors import KeyStoreError, PolicyRefusedError, VaultError
from gateway.vault.files import write_durably
from gateway.vault.keystore import ApprovalStatus, KeyStoreStatus, Level
from gateway.vault.policy import Advance, BootState, FirstCount, PolicyKey, SignedApproval
from gateway.vault.tpm.codes import INTEGRITY, POLICY_CODES, is_integrity
from gateway.vault.tpm.connection import Connection, Tpm
from gateway.vault.tpm.counter import advance_counter, define_counter, read_counter
from gateway.vault.tpm.floorcounter import count_floor_up, forecast, read_floor_counter
from gateway.vault.tpm.objects import open_root, provision_root, root_name
from gateway.vault.tpm.registers import read_registers
from gateway.vault.tpm.sealing import SealedBlob, seal, unseal

log = structlog.get_logger()

Answer = TypeVar("Answer")

_FILE: Final = "tpm.json"


class Provisioned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this device's TPM looked like when the vault was made."""

    root_name: bytes  # of the storage root key


class TpmKeyStore:
    """Seals in the TPM. Every call opens the TPM anew and has the connection's deadline."""

    level: Final[Level] = "tpm"

    def __init__(
        self,
        connection: Connection,
        directory: Path,
        key: PolicyKey,
        approvals: Callable[[], Approvals],
        *,
        pcrs: Sequence[int] = (),
    ) -> None:
        """Take parts; nothing is opened.

        Args:
            connection: to the TPM.
            directory: the vault's, for the name of the storage root key.
            key: whose approvals count.
            approvals: reads the signed policies; asked at each use, because an update brings new ones.
            pcrs: shown in the status besides those that approvals name.
        """
        self._connection = connection
        self._file = directory / _FILE
        self._key = key
        self._approvals = approvals
        self._pcrs = tuple(pcrs)

    def provision(self) -> None:
        """Make the storage root key and the counter, where they are not there yet.

        Raises:
            KeyStoreError: no approval of kind `first` is there, or the TPM is another one than last time.
        """
        firsts = self._approvals().of(FirstCount)
        if not firsts:
            raise KeyStoreError(
                "the counter cannot be begun: no signed policy of kind `first` is there; make one with "
                "`gateway vault policy sign --first`"
            )
        if not self._file.exists():
            name = self._connection.call("making the storage root key", provision_root)
            write_durably(self._file, msgspec.json.encode(Provisioned(root_name=name)))
        first, _ = firsts[0]
        pinned = self._pinned()

        def work(tpm: Tpm) -> int:
            return define_counter(tpm, open_root(tpm, pinned), first.signed, self._key)

        value = self._connection.call("making the counter", work)
        log.info("tpm_provisioned", tcti=self._connection.tcti, counter=value)

    def pin_again(self) -> None:
        """Write down anew which TPM this is, where the file that says so was lost; does nothing where it is there.

        What was sealed opens in the TPM that has sealed it alone, so that another one is found out all the same.

        Raises:
            KeyStoreError: the TPM does not answer, or has no storage root key.
        """
        if not self._file.exists():
            name = self._connection.call("looking for the storage root key", root_name)
            write_durably(self._file, msgspec.json.encode(Provisioned(root_name=name)))
            log.warning("tpm_pinned_again", file=str(self._file), tcti=self._connection.tcti)

    def forget(self) -> None:
        """Forget which TPM this was; storage root key and counter stay in it."""
        self._file.unlink(missing_ok=True)

    def seal(self, secret: bytes) -> bytes:
        """See `KeyStore.seal`."""
        pinned = self._pinned()

        def work(tpm: Tpm) -> SealedBlob:
            return seal(tpm, open_root(tpm, pinned), secret, self._key)

        return msgspec.json.encode(self._connection.call("sealing a key", work))

    def unseal(self, blob: bytes) -> bytes:
        """See `KeyStore.unseal`."""
        try:
            sealed = msgspec.json.decode(blob, type=SealedBlob)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise KeyStoreError(
                "the sealed key on disk is none that a TPM has sealed: it is damaged, or was made at another "
                f"`vault.level` ({error}); `gateway vault init --anew` begins again"
            ) from error
        pinned, approvals = self._pinned(), self._approvals()

        def work(tpm: Tpm) -> bytes:
            root = open_root(tpm, pinned)
            return self._approved(
                tpm, approvals, "the vault key", lambda signed: unseal(tpm, root, sealed, signed, self._key)
            )

        return self._connection.call("unsealing a key", work)

    # ---- the counter of updates ----------------------------------------------------------------------

    def floor_count(self) -> int | None:
        """Return the value of the counter of updates, None if it is not there or has not begun.

        Raises:
            KeyStoreUnavailableError: no answer in time.
            KeyStoreError: something else has its index.
        """
        return self._connection.call("reading the counter of updates", lambda tpm: read_floor_counter(tpm, self._key))

    def floor_forecast(self) -> int:
        """Return the value that the counter of updates would begin with. Raises as `count_floor`."""
        return self._with_approval("looking where counters begin", forecast)

    def count_floor(self) -> int:
        """Move the counter of updates one step on, or begin it; returns the new value.

        Raises:
            PolicyRefusedError: the machine is not in an approved state.
            KeyStoreUnavailableError: no answer in time; it may have been moved.
            KeyStoreError: something else has its index, or the TPM has no room for it.
        """
        value = self._with_approval("moving the counter of updates", count_floor_up)
        log.info("floor_counted", counter=value)
        return value

    def _with_approval(self, what: str, work: Callable[[Tpm, Any, SignedApproval, PolicyKey], int]) -> int:
        pinned, approvals = self._pinned(), self._approvals()

        def approved(tpm: Tpm) -> int:
            root = open_root(tpm, pinned)
            return self._approved(tpm, approvals, what, lambda signed: work(tpm, root, signed, self._key))

        return self._connection.call(what, approved)

    # ---- the counter against old images --------------------------------------------------------------

    def advance(self) -> int:
        """Move the counter one step on, so that images approved only up to here are of no use any more.

        To be called when a new image has proved itself: before, the image to fall back to would lose its key.

        Returns:
            The new value.

        Raises:
            VaultError: no approval for this step is there, or the running image is not approved for what follows.
        """
        pinned, approvals = self._pinned(), self._approvals()

        def work(tpm: Tpm) -> int:
            counters = {index: read_counter(tpm, index) for index in _indices(approvals)}
            for step, approval in _steps(approvals):
                if counters[approval.counter_index] == approval.counter:
                    self._require_next(tpm, approvals, approval)
                    return advance_counter(tpm, open_root(tpm, pinned), step.signed, self._key)
            raise VaultError(_no_step(counters, [approval.counter for _, approval in _steps(approvals)]))

        value = self._connection.call("advancing the counter", work)
        log.info("vault_counter_advanced", counter=value)
        return value

    def _require_next(self, tpm: Tpm, approvals: Approvals, step: Advance) -> None:
        """Make sure that the running image can still unseal afterwards: a counter never goes back."""
        boots = approvals.of(BootState)
        pcrs = read_registers(tpm, _numbers(boots))
        reasons = [
            f"{state.name}: {'; '.join(policy.objections(state, pcrs, step.counter + 1))}"
            for _, state in boots
            if policy.objections(state, pcrs, step.counter + 1)
        ]
        if len(reasons) == len(boots):
            raise VaultError(
                f"not advanced: at the counter {step.counter + 1} the running image could not unseal any more "
                f"({'; '.join(reasons) or 'no signed policy of kind `boot` is there'})"
            )

    def status(self) -> KeyStoreStatus:
        """See `KeyStore.status`."""
        try:
            approvals, pinned = self._approvals(), self._pinned()
            return self._connection.call("looking at the TPM", lambda tpm: self._look(tpm, pinned, approvals))
        except VaultError as error:
            return KeyStoreStatus(
                level=self.level,
                ready=False,
                reasons=(str(error),),
                tcti=self._connection.tcti,
                policy_key=self._key.fingerprint,
            )

    def _look(self, tpm: Tpm, pinned: bytes, approvals: Approvals) -> KeyStoreStatus:
        open_root(tpm, pinned)
        boots = approvals.of(BootState)
        pcrs = read_registers(tpm, sorted({*_numbers(boots), *self._pcrs}))
        indices = _indices(approvals)
        counters = {index: read_counter(tpm, index) for index in sorted(indices)}
        rows = [_judged(each, pcrs, counters) for each in approvals.approved]
        rows += [
            ApprovalStatus(each.file.name, "", "", holds=False, reasons=(each.reason,)) for each in approvals.rejected
        ]
        states = [row for row in rows if row.kind == "boot"]
        ready = any(row.holds for row in states)
        index = next(iter(counters))
        return KeyStoreStatus(
            level=self.level,
            ready=ready,
            reasons=() if ready else _refusals(states),
            warnings=_unmeasured(pcrs, _numbers(boots)),
            tcti=self._connection.tcti,
            policy_key=self._key.fingerprint,
            pcrs={number: value.hex() for number, value in pcrs.items()},
            counter_index=index,
            counter=counters[index],
            approvals=tuple(rows),
        )

    def _approved(self, tpm: Tpm, approvals: Approvals, what: str, work: Callable[[SignedApproval], Answer]) -> Answer:
        """Try every approval that holds; the TPM has the last word."""
        boots = approvals.of(BootState)
        pcrs = read_registers(tpm, _numbers(boots))
        reasons = [f"{each.file.name}: {each.reason}" for each in approvals.rejected]
        for approved, state in boots:
            objections = policy.objections(state, pcrs, read_counter(tpm, state.counter_index))
            if objections:
                reasons.append(f"{state.name}: {', '.join(objections)}")
                continue
            try:
                return work(approved.signed)
            except tpm.library.failure as error:
                code = int(error.rc)  # type: ignore[attr-defined]  # untyped library
                if is_integrity(code):
                    raise KeyStoreError(_FOREIGN) from error
                if code not in POLICY_CODES:
                    raise
                reasons.append(
                    f"{state.name}: refused by the TPM (code {code:#x}): sealed for another policy key, or the "
                    "machine's state changed just now"
                )
        raise PolicyRefusedError(what, reasons)

    def _pinned(self) -> bytes:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Provisioned).root_name
        except FileNotFoundError as error:
            raise KeyStoreError("this device has no vault yet: run `gateway vault init`") from error
        except OSError as error:
            raise KeyStoreError(f"{self._file} cannot be read: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise KeyStoreError(
                f"{self._file} is damaged: {error}; `gateway vault init --anew` begins again"
            ) from error


_FOREIGN: Final = (
    f"the TPM does not know this sealed key (code {INTEGRITY:#x}): the disk comes from another device, the TPM was "
    "cleared, or the file is damaged; `gateway vault init --anew` begins again"
)


def _numbers(boots: Sequence[tuple[Approved, BootState]]) -> list[int]:
    return sorted({number for _, state in boots for number in policy.pcr_values(state)})


def _steps(approvals: Approvals) -> Sequence[tuple[Approved, Advance]]:
    return approvals.of(Advance)


def _indices(approvals: Approvals) -> set[int]:
    return {each.approval.counter_index for each in approvals.approved} or {policy.DEFAULT_COUNTER_INDEX}


def _no_step(counters: dict[int, int | None], steps: Sequence[int]) -> str:
    """Say why a counter cannot be moved on, and what would help."""
    # One, as a rule: another only where a device moves from one counter to the next.
    value = next((value for _, value in sorted(counters.items()) if value is not None), None)
    if value is None:
        return "the counter was never begun on this TPM: run `gateway vault init`"
    others = f"those here are for the steps from {', '.join(map(str, sorted(steps)))}" if steps else "there is none"
    return (
        f"the counter is {value}, and no signed policy of kind `advance` is for the step from {value}: {others}. It "
        "comes with the update, into vault.policy_directory; where images are built, `gateway vault policy sign "
        f"--advance-from {value}` makes it"
    )


def _judged(each: Approved, pcrs: dict[int, bytes], counters: dict[int, int | None]) -> ApprovalStatus:
    approval = each.approval
    counter = counters[approval.counter_index]
    match approval:
        case BootState():
            reasons = tuple(policy.objections(approval, pcrs, counter))
            return ApprovalStatus(each.file.name, approval.name, "boot", holds=not reasons, reasons=reasons)
        case FirstCount():
            why = () if counter is None else ("the counter has begun",)
            return ApprovalStatus(each.file.name, approval.name, "first", holds=not why, reasons=why)
        case Advance():
            fits = counter == approval.counter
            why = () if fits else (f"for the step from {approval.counter}, the counter is {counter}",)
            return ApprovalStatus(each.file.name, approval.name, "advance", holds=fits, reasons=why)


def _unmeasured(pcrs: dict[int, bytes], numbers: Sequence[int]) -> tuple[str, ...]:
    """Notice registers that nobody has ever extended: they are the same on every machine."""
    zero = [str(number) for number in numbers if not any(pcrs[number])]
    if not zero:
        return ()
    return (f"PCR {', '.join(zero)}: nothing was measured into them, so they do not tell this image from another",)


def _refusals(states: Sequence[ApprovalStatus]) -> tuple[str, ...]:
    if not states:
        return ("no signed policy of kind `boot` is there",)
    return tuple(f"{state.name}: {', '.join(state.reasons)}" for state in states)
