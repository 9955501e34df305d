"""The vault's approvals of an image: `approve` in the tools tree, called from the build."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from image.builder.chroot import Tree
from image.builder.keys import Keys
from image.builder.release import Release
from image.builder.uki import Uki


@dataclass(frozen=True, slots=True)
class Signer:
    """What approvals are signed with."""

    repo: Path
    keys: Keys
    tools: Tree

    def sign(self, release: Release, ukis: Iterable[Uki], registers: Mapping[str, str], out: Path) -> dict[str, Path]:
        """Approve the boot states of kernel images, and the steps of the counter; returns the files by name.

        All lie beside the kernel images and not in the root: no two signatures are alike, and the root's hash must be.

        Raises:
            BuildError: it failed.
        """
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        pairs = [f"{uki.slot}={uki.pcr11}" for uki in ukis] + [
            f"{number}={value}" for number, value in registers.items()
        ]
        tree = Tree(self.tools.root, self.tools.progress, {"PYTHONPATH": "/run/b/repo", "PYTHONDONTWRITEBYTECODE": "1"})
        tree.run(
            ["python3", "-m", "image.builder.approve", "/run/b/keys/policy.key", "/run/b/out", release.version,
             str(release.generation), *pairs],
            {self.repo: "/run/b/repo", self.keys.folder: "/run/b/keys", out: "/run/b/out"},
        )  # fmt: skip
        return {file.name: file for file in sorted(out.glob("*.policy.json"))}
