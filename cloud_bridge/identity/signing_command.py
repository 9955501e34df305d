"""An authority that is asked by a program: step-ca, Vault, SPIRE or an organisation's own, by a few lines of shell.

The program is started once for each certificate, without a shell. It reads one `SigningRequest` as JSON from its
standard input, writes the chain as PEM to its standard output, the device's own certificate first, and ends with 0.
Anything else is a failure, of which the last lines of its standard error are told.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import IO, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from cloud_bridge.identity.errors import AuthorityError
from cloud_bridge.identity.issuer import CertificateRequest
from gateway.wire.times import rfc3339

MAX_OUTPUT_BYTES: Final = 128 * 1024
_PIECE_BYTES: Final = 16 * 1024
_TOLD_LINES: Final = 3
_TOLD_CHARACTERS: Final = 400


class SigningRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the program is asked. Fields are only ever added.

    `common_name` and `spiffe_id` are all the names that the certificate may have; `csr` is PEM. It must hold now and
    end at `not_after` or earlier (RFC 3339, UTC), which is in `seconds`.
    """

    version: int = 1
    gateway: str
    common_name: str
    spiffe_id: str
    csr: str
    not_before: str
    not_after: str
    seconds: int


class CommandSigner:
    """Asks a program. Safe to call from any thread."""

    def __init__(
        self,
        command: Sequence[str],
        timeout_seconds: float,
        *,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = tuple(command)
        self._seconds = timeout_seconds
        self._clock = clock
        self._monotonic = monotonic

    def __str__(self) -> str:
        return f"the command {self._command[0]}"

    def sign(self, request: CertificateRequest) -> bytes:
        """See foreign.Signer."""
        try:
            child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise AuthorityError(
                "failed", f"{self} cannot be started: {error.strerror or error}; see `identity.issuer.command`"
            ) from error
        try:
            output, errors = self._converse(child, msgspec.json.encode(_asked(request, self._clock())))
        finally:
            _end(child)
        if child.returncode:
            how = f"signal {-child.returncode}" if child.returncode < 0 else f"exit status {child.returncode}"
            raise AuthorityError("failed", f"{self} ended with {how}: {_last_words(errors)}")
        return output

    def _converse(self, child: "subprocess.Popen[bytes]", question: bytes) -> tuple[bytes, bytes]:
        """Hand the question over and take what comes, up to the limits of time and size."""
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        end = self._monotonic() + self._seconds
        said: dict[IO[bytes], bytearray] = {child.stdout: bytearray(), child.stderr: bytearray()}
        with selectors.DefaultSelector() as selector, child.stdin, child.stdout, child.stderr:
            for pipe in (child.stdin, child.stdout, child.stderr):
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_WRITE if pipe is child.stdin else selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select(self._left(end)):
                    if key.fileobj is child.stdin:
                        question = _hand_over(child.stdin, question)
                        ended = not question
                    else:
                        piece = os.read(key.fd, _PIECE_BYTES)
                        kept = said[key.fileobj]  # type: ignore[index]  # what was registered: the pipes
                        kept += piece
                        ended = not piece
                        if len(kept) > MAX_OUTPUT_BYTES:
                            raise AuthorityError("failed", f"{self} writes more than {MAX_OUTPUT_BYTES} bytes")
                    if ended:
                        selector.unregister(key.fileobj)
                        if key.fileobj is child.stdin:
                            child.stdin.close()
            try:
                child.wait(self._left(end))
            except subprocess.TimeoutExpired as error:
                raise self._late() from error
        return bytes(said[child.stdout]), bytes(said[child.stderr])

    def _left(self, end: float) -> float:
        left = end - self._monotonic()
        if left <= 0:
            raise self._late()
        return left

    def _late(self) -> AuthorityError:
        return AuthorityError(
            "away",
            f"{self} has not ended within {self._seconds:g} s and was killed; is the authority behind it there?"
            " `identity.issuer.timeout_seconds` is the limit",
        )


def _asked(request: CertificateRequest, now_ns: int) -> SigningRequest:
    csr = x509.load_der_x509_csr(request.csr)
    after = int(request.life.not_after.timestamp())
    return SigningRequest(
        gateway=request.gateway,
        common_name=request.gateway,
        spiffe_id=request.spiffe_id,
        csr=csr.public_bytes(serialization.Encoding.PEM).decode("ascii"),
        not_before=rfc3339(int(request.life.not_before.timestamp()) * 1_000_000_000),
        not_after=rfc3339(after * 1_000_000_000),
        seconds=after - now_ns // 1_000_000_000,
    )


def _hand_over(pipe: IO[bytes], question: bytes) -> bytes:
    """Write what the pipe takes; return the rest. A program that does not read is not asked to."""
    try:
        return question[os.write(pipe.fileno(), question) :]
    except BrokenPipeError:
        return b""


def _end(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # its whole group, also when it has ended itself
    child.wait()


def _last_words(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()[-_TOLD_LINES:]
    words = " / ".join(lines) or "it said nothing"
    return "".join(letter if letter.isprintable() else " " for letter in words)[-_TOLD_CHARACTERS:]
