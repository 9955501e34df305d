"""Weights that lie in clear, for tools that make and judge models. The gateway itself opens the sealed store alone."""

import hashlib
import os

from gateway.errors import ModelError
from gateway.inference.bundle import Release
from gateway.wire.manifest import Artefact


class MemoryWeights:
    """Bytes as a file without a name, for runtimes that open files (`gateway.inference.backend.Weights`)."""

    def __init__(self, content: bytes) -> None:
        """Copy the bytes."""
        self._fd = os.memfd_create("weights", os.MFD_CLOEXEC)
        with open(os.dup(self._fd), "wb") as file:  # noqa: PTH123 - it has no path but this descriptor
            file.write(content)

    @property
    def path(self) -> str:
        """Where a runtime can open it."""
        return f"/proc/self/fd/{self._fd}"

    def close(self) -> None:
        """Give the memory back; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_plain(release: Release, artefact: Artefact) -> MemoryWeights:
    """Read an artefact that lies in clear, and compare it with the manifest (`gateway.inference.bundle.OpenWeights`).

    Raises:
        ModelError: it is missing, or its size or digest differ.
    """
    path = release.directory / artefact.file
    try:
        with path.open("rb") as file:
            content = file.read(artefact.size_bytes + 1)
    except OSError as error:
        raise ModelError(f"model {release.label}: {path} cannot be read: {error.strerror or error}") from error
    if len(content) != artefact.size_bytes or hashlib.sha256(content).hexdigest() != artefact.sha256:
        release.verify(artefact)  # says what is wrong
        raise ModelError(f"model {release.label}: {path} changed while it was read")
    return MemoryWeights(content)
