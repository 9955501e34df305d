"""Does what the device's program does for a publisher, in this process and at once. Knob: what an examination finds."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloud_bridge.registry.errors import Problem
from cloud_bridge.registry.workshop import Examined
from gateway.vault.aead import GCM
from gateway.vault.container import Contents, opened, read_header, sealed
from gateway.wire.manifest import read_manifest


@dataclass
class WorkshopSimulator:
    """A workshop that seals for real, and believes every model to run."""

    problems: list[Problem] = field(default_factory=list)
    examined: int = 0

    def examine(self, directory: Path) -> tuple[list[Examined], list[Problem]]:
        self.examined += 1
        manifest = read_manifest((directory / "manifest.json").read_bytes())
        return [Examined(target=one.target, file=one.file) for one in manifest.artefacts], self.problems

    def seal(self, directory: Path, manifest: Path, key: bytes, out: Path) -> None:
        document = manifest.read_bytes()
        read = read_manifest(document)
        out.mkdir(exist_ok=True)
        for file in directory.iterdir():
            plain = file.read_bytes()
            contents = Contents(
                name=read.name,
                version=read.version,
                release=hashlib.sha256(document).hexdigest(),
                file=file.name,
                sha256=hashlib.sha256(plain).hexdigest(),
                size_bytes=len(plain),
            )
            (out / f"{file.name}.sealed").write_bytes(sealed(contents, key, plain, GCM))

    def unseal(self, containers: Sequence[Path], key: bytes, out: Path) -> None:
        out.mkdir(exist_ok=True)
        for container in containers:
            content = container.read_bytes()
            (out / read_header(content)[0].file).write_bytes(opened(content, key))
