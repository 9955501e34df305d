"""Calls to the TPM: each on a connection of its own, on a thread of its own, and with a deadline.

The library has no time-out: a TPM that stops answering blocks a call for ever. So calls run on a thread that can be
left behind; while one hangs, further calls are refused at once instead of piling up behind it. A connection for each
call costs half a millisecond. It needs no repair after the TPM went away and came back, and leaves nothing behind
in a resource manager. Where there is none, programs and connections take turns: everybody's objects and sessions
have the same few slots there, and each call begins by freeing those that a killed program has left.
"""

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTimeError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from gateway.vault.errors import KeyStoreError, KeyStoreUnavailableError
from gateway.vault.tpm.codes import translated
from gateway.vault.tpm.library import TpmLibrary, tpm_library

log = structlog.get_logger()

Answer = TypeVar("Answer")

_TRANSIENT: Final = 0x8000_0000
_LOADED_SESSIONS: Final = 0x0200_0000
_SAVED_SESSIONS: Final = 0x0300_0000
_FLUSH_CONTEXT: Final = 0x0000_0165
_MAX_HANDLES: Final = 64
_TURN_POLL_SECONDS: Final = 0.005


@dataclass(frozen=True, slots=True)
class Tpm:
    """An open connection: the ESAPI object and the library that it comes from."""

    esys: Any
    library: TpmLibrary

    @property
    def pytss(self) -> Any:
        """The library's names."""
        return self.library.pytss

    def handles(self, first: int) -> list[int]:
        """Return what is there of one kind of handle, from `first` on."""
        # The answer must stay in a variable: parts of a temporary point into freed memory.
        answer = self.esys.get_capability(self.pytss.TPM2_CAP.HANDLES, first, _MAX_HANDLES)
        found = answer[1].data.handles
        return [int(found[at]) for at in range(len(found))]

    @contextlib.contextmanager
    def flushed(self, handle: Any) -> Iterator[Any]:
        """Give an object's or a session's slot back at the end, whatever happens."""
        try:
            yield handle
        finally:
            # A TPM that went away meanwhile has nothing to flush.
            with contextlib.suppress(self.library.failure):
                self.esys.flush_context(handle)


class Connection:
    """Where the TPM is, and how long a call may take."""

    def __init__(
        self,
        tcti: str,
        *,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        library: Callable[[], TpmLibrary] = tpm_library,
    ) -> None:
        """Prepare; nothing is opened before the first call.

        Args:
            tcti: as in `tpm2-tools -T`: `device:/dev/tpmrm0`, `swtpm:host=…,port=…`.
            seconds: after which a call is given up; so long it may wait for its turn before that.
            clock: monotonic, seconds.
            library: loads tpm2-pytss.
        """
        self.tcti = tcti
        self._seconds = seconds
        self._clock = clock
        self._library = library
        self._turn = threading.Lock()
        self._state = threading.Lock()
        self._pause = threading.Event()  # never set
        self._hanging_since: float | None = None

    def call(self, what: str, work: Callable[[Tpm], Answer]) -> Answer:
        """Do some work with the TPM.

        Args:
            what: for messages: `unsealing the vault key`.
            work: gets the open connection; it may have been begun, or even finish, after the deadline.

        Raises:
            VaultConfigError: the libraries, or the device, are not there.
            KeyStoreUnavailableError: the TPM does not answer, or not in time.
            TpmResponseError: it refused.
        """
        library = self._library()
        hanging = self._hanging_since
        if hanging is not None:
            since = self._clock() - hanging
            raise KeyStoreUnavailableError(f"{what}: the TPM at {self.tcti} has not answered for {since:.0f} s")
        if not self._turn.acquire(timeout=self._seconds):
            raise KeyStoreUnavailableError(f"{what}: the TPM at {self.tcti} is busy with earlier calls")
        deadline = self._clock() + self._seconds  # from here: who has waited for others is no TPM that hangs
        answer: Future[Answer] = Future()
        threading.Thread(target=self._work, args=(library, what, work, answer), name="tpm", daemon=True).start()
        try:
            return answer.result(max(0.0, deadline - self._clock()))
        except NotInTimeError as error:
            if not self._hangs(what, answer):
                return answer.result()
            raise KeyStoreUnavailableError(
                f"{what}: the TPM at {self.tcti} did not answer within {self._seconds:g} s"
            ) from error

    def _hangs(self, what: str, answer: Future[Answer]) -> bool:
        """Note that a call hangs; False when it has answered in the meantime."""
        with self._state:
            if answer.done():
                return False
            self._hanging_since = self._clock() - self._seconds
        log.warning("tpm_hangs", tcti=self.tcti, call=what, seconds=self._seconds)
        return True

    def _answers(self) -> None:
        with self._state:
            since, self._hanging_since = self._hanging_since, None
        if since is not None:
            log.info("tpm_answers_again", tcti=self.tcti, seconds=round(self._clock() - since, 1))

    def _work(self, library: TpmLibrary, what: str, work: Callable[[Tpm], Answer], answer: Future[Answer]) -> None:
        try:
            with self._alone(what), self._opened(library, what) as tpm:
                answer.set_result(work(tpm))
        except library.failure as error:
            answer.set_exception(translated(what, self.tcti, int(error.rc), str(error)))  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001 - handed to the caller, which waits for this thread
            if not answer.done():
                answer.set_exception(error)
        finally:
            self._turn.release()
            self._answers()

    @contextlib.contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """Keep the other connections of this machine away where no resource manager does.

        A socket name that can be bound once (unix(7), abstract) is a lock that ends with whoever holds it, and that
        programs of all users share.
        """
        if self._is_managed:
            yield
            return
        name = b"\0sluice-tpm-" + hashlib.sha256(self.tcti.encode()).hexdigest()[:32].encode()
        # Half of the time that the call has: what is waited for here is no TPM that hangs.
        deadline = self._clock() + self._seconds / 2
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as turn:
            while True:
                try:
                    turn.bind(name)
                    break
                except OSError as error:
                    if self._clock() > deadline:
                        raise KeyStoreUnavailableError(
                            f"{what}: the TPM at {self.tcti} is busy with another program"
                        ) from error
                self._pause.wait(_TURN_POLL_SECONDS)
            yield

    @contextlib.contextmanager
    def _opened(self, library: TpmLibrary, what: str) -> Iterator[Tpm]:
        self._require_device(what)
        name, _, settings = self.tcti.partition(":")
        try:
            tcti = library.pytss.TCTILdr(name, settings or None)
        except library.failure as error:
            raise KeyStoreUnavailableError(
                f"{what}: the TPM at {self.tcti} cannot be reached ({error}); is it there, and is the package "
                f"libtss2-tcti-{name}0 installed?"
            ) from error
        esys = library.pytss.ESAPI(tcti)
        try:
            tpm = Tpm(esys, library)
            if not self._is_managed:
                _flush_what_was_left(tpm, tcti)
            yield tpm
        finally:
            esys.close()
            tcti.close()

    @property
    def _is_managed(self) -> bool:
        """Whether a resource manager stands between: it keeps programs apart, and cleans up behind each."""
        return "tpmrm" in self.tcti or "tabrmd" in self.tcti

    def _require_device(self, what: str) -> None:
        name, _, settings = self.tcti.partition(":")
        if name != "device":
            return
        device = Path(settings or "/dev/tpmrm0")
        try:
            device.open("r+b", buffering=0).close()
        except FileNotFoundError as error:
            raise KeyStoreError(
                f"{what}: there is no {device}: switch the TPM on in the firmware's settings, or name another under "
                "vault.tcti"
            ) from error
        except PermissionError as error:
            raise KeyStoreError(f"{what}: {device} may not be opened: add this user to the group `tss`") from error
        except OSError as error:
            raise KeyStoreUnavailableError(f"{what}: {device} cannot be opened: {error.strerror}") from error


def _flush_what_was_left(tpm: Tpm, tcti: Any) -> None:
    """Free the slots of a program that was killed. Whoever has the TPM without a manager has it alone."""
    for first in (_TRANSIENT, _LOADED_SESSIONS, _SAVED_SESSIONS):
        for handle in tpm.handles(first):
            # ESAPI flushes only what it has made itself.
            body = _FLUSH_CONTEXT.to_bytes(4, "big") + handle.to_bytes(4, "big")
            tcti.transmit(b"\x80\x01" + (6 + len(body)).to_bytes(4, "big") + body)
            tcti.receive()
