"""Which release is built: version, commit and time come from the repository."""

import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

from image.builder.boards import Board
from image.builder.errors import BuildError

_VERSION = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}(-[0-9A-Za-z.-]{1,60})?")
"""What the bridge takes into its catalogue of bundles; a device that said another would fit no rollout."""


@dataclass(frozen=True, slots=True)
class Release:
    """What an image says of itself."""

    version: str
    commit: str  # with `-dirty` when the working tree differs
    epoch: int  # of the commit, seconds; SOURCE_DATE_EPOCH
    floor: str  # no bundle below this version is installed by a device that runs this release
    generation: int  # what the vault's counter is counted up to once this release has proved itself

    def document(self, board: Board) -> dict[str, object]:
        """Return release.json."""
        return {
            "version": self.version,
            "commit": self.commit,
            "target": board.name,
            "compatible": board.compatible,
            "floor": self.floor,
            "generation": self.generation,
        }


def of_repository(repo: Path, version: str | None, floor: str | None, generation: int | None) -> Release:
    """Read it; what is given takes precedence.

    Raises:
        BuildError: this is no git repository, or a version is none.
    """
    facts = tomllib.loads((repo / "image" / "release.toml").read_text())
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]["version"]
    try:
        commit = _git(repo, "rev-parse", "HEAD")
        epoch = int(_git(repo, "log", "-1", "--format=%ct"))
        dirty = bool(_git(repo, "status", "--porcelain", "--untracked-files=normal"))
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        raise BuildError(f"{repo} is no git repository, so nobody could tell what an image was built from") from error
    version, floor = version or project, floor or facts["floor"]
    for what, value in (("--version", version), ("--floor", floor)):
        if _VERSION.fullmatch(value) is None:
            raise BuildError(f"{what} {value!r} is no version: three numbers, as in 1.4.0 or 1.4.0-rc.1")
    generation = facts["generation"] if generation is None else generation
    if generation < 1:
        raise BuildError(f"--generation {generation}: the vault's counter begins with 1")
    return Release(
        version=version,
        commit=f"{commit}-dirty" if dirty else commit,
        epoch=epoch,
        floor=floor,
        generation=generation,
    )


def _git(repo: Path, *words: str) -> str:
    argv = ["git", "-C", str(repo), "-c", f"safe.directory={repo}", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
