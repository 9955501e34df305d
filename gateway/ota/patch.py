"""Makes the plaintext of an artefact from what was fetched, in memory, in a child under limits.

Nothing of it touches a file system: base, patch and result are anonymous memory that is handed to the child by
descriptor. The size of the result comes from signed metadata, and so does its digest, which is compared before anything
else sees the result.
"""

import hashlib
import mmap
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

from gateway.errors import GatewayError
from gateway.vault.errors import VaultError
from gateway.vault.memory import PlaintextMemory

BSDIFF: Final = "bsdiff4"
ZSTD: Final = "zstd"
METHODS: Final = frozenset({BSDIFF, ZSTD})

MAX_RATIO: Final = 200
"""How many bytes one fetched byte may make; of a patch the bytes of its base count, too."""
_BLOCK: Final = 1 << 20
_ROOM_BYTES: Final = 64 << 20


class PatchError(GatewayError):
    """What was fetched does not make what was announced; the full file may."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is to be made of what."""

    label: str  # for messages
    method: str
    size_bytes: int  # of the result, from signed metadata
    sha256: str


def make(recipe: Recipe, packed_fd: int, base_fd: int | None = None, *, seconds: int = 120) -> PlaintextMemory:
    """Return the plaintext, sealed against writing; the caller closes it.

    Args:
        recipe: what it must become.
        packed_fd: holds the patch or the compressed file.
        base_fd: holds what a patch is applied to; None: the file is only compressed.
        seconds: processor time at most; twice that on the clock.

    Raises:
        PatchError: it cannot be, or is not, what was announced.
        VaultError: there is no memory, or no process, for it now.
    """
    _check(recipe, packed_fd, base_fd)
    memory = PlaintextMemory(recipe.label.replace("/", "-"), recipe.size_bytes)
    try:
        _run(recipe, packed_fd, base_fd, memory, seconds)
        digest = _digest(memory.fd, recipe.size_bytes)
        if digest != recipe.sha256:
            raise PatchError(
                f"{recipe.label}: the result has the digest {digest[:12]}…, {recipe.sha256[:12]}… was announced"
            )
        memory.seal()
    except (GatewayError, OSError):
        memory.close()
        raise
    return memory


def _check(recipe: Recipe, packed_fd: int, base_fd: int | None) -> None:
    if recipe.method not in METHODS:
        known = ", ".join(sorted(METHODS))
        raise PatchError(f"{recipe.label}: this program cannot apply {recipe.method!r}, only {known}")
    if recipe.method == BSDIFF and base_fd is None:
        raise PatchError(f"{recipe.label}: a patch of bsdiff needs a base")
    sources = os.fstat(packed_fd).st_size + (os.fstat(base_fd).st_size if base_fd is not None else 0)
    if recipe.size_bytes > MAX_RATIO * sources:
        raise PatchError(
            f"{recipe.label}: {sources} bytes are to make {recipe.size_bytes}, more than {MAX_RATIO} times as much"
        )


def _run(recipe: Recipe, packed_fd: int, base_fd: int | None, memory: PlaintextMemory, seconds: int) -> None:
    # A descriptor of its own: the child writes from the start of the file, and the size is fixed already.
    output = os.open(f"/proc/self/fd/{memory.fd}", os.O_WRONLY | os.O_CLOEXEC)
    handed = [fd for fd in (packed_fd, base_fd, output) if fd is not None]
    # zstd keeps a window as large as base and result together, and a copy of the base.
    base_bytes = os.fstat(base_fd).st_size if base_fd is not None else 0
    room = _ROOM_BYTES + 3 * (base_bytes + recipe.size_bytes)
    command = [
        *(sys.executable, "-I", "-m", "gateway.ota.patch_child", recipe.method),
        *("-" if base_fd is None else str(base_fd), str(packed_fd), str(output)),
        *(str(recipe.size_bytes), str(room), str(seconds)),
    ]
    try:
        done = subprocess.run(
            command, pass_fds=handed, stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PatchError(f"{recipe.label}: not made within {2 * seconds} s") from error
    except OSError as error:
        raise VaultError(f"{recipe.label}: no process for it: {error.strerror or error}") from error
    finally:
        os.close(output)
    if done.returncode == -signal.SIGKILL:  # a patch that takes too much is ended by a limit, and otherwise
        # The full file takes less memory than a patch; of that one itself nothing is known yet.
        kind = VaultError if base_fd is None else PatchError
        raise kind(f"{recipe.label}: its process was killed, as the kernel does where memory runs out")
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = words[-1] if words else f"its process ended with status {done.returncode}"
        raise PatchError(f"{recipe.label}: {reason}")


def _digest(fd: int, size: int) -> str:
    if size == 0:
        return hashlib.sha256().hexdigest()
    with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
        mapping.madvise(mmap.MADV_DONTDUMP)
        digest = hashlib.sha256()
        with memoryview(mapping) as whole:
            for start in range(0, size, _BLOCK):
                with whole[start : start + _BLOCK] as block:
                    digest.update(block)
    return digest.hexdigest()
