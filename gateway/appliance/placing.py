"""Puts planned files in place: all of them or none, whenever the power goes.

1. `prepare` writes everything into `claiming/`, syncs it, and renames that to `claimed/`: from here on the claim is
   safe on the device, and can be erased where it came from.
2. `commit` renames each file to its place, the configuration last.

Cut before the rename of step 1 the device is as it was, and the leftovers go at the next try; cut after it,
`commit` goes on where it was.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import structlog

from gateway.appliance.errors import ApplianceError
from gateway.appliance.plan import CONFIG, Area, Owner, PlannedFile

log = structlog.get_logger()

_NAMES: Final = PurePosixPath("names")
_BROUGHT: Final = (
    "ssh/authorized_keys",
    "network/10-sluice-*.network",
    "timesyncd.conf",
    "bridge-ca.pem",
    "registry-root.json",
    "secrets/*",
)
"""What comes from claims alone, below the settings."""
_DIRECTORY_MODES: Final[dict[Owner, int]] = {"gateway": 0o700, "root": 0o755}


@dataclass(frozen=True, slots=True)
class Account:
    """Who owns files, as numbers."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Placing:
    """The directories, and who owns what is put there. Its methods block; errors of the disk become ApplianceError."""

    settings: Path
    state: Path
    gateway: Account | None = None  # None: whoever runs this, as in a trial without root

    @property
    def _claiming(self) -> Path:
        return self.settings / ".claiming"

    @property
    def _claimed(self) -> Path:
        return self.settings / ".claimed"

    @property
    def prepared(self) -> bool:
        """Whether a claim was prepared and not yet committed to the end."""
        return self._claimed.is_dir()

    def staged(self, area: Area, path: str) -> bytes | None:
        """Return a file that was prepared and is not in its place yet."""
        try:
            return (self._claimed / area / path).read_bytes()
        except OSError:
            return None

    def prepare(self, files: Sequence[PlannedFile]) -> None:
        """Write all files aside, durably; afterwards `prepared`.

        Raises:
            ApplianceError: the disk refuses; nothing has changed.
        """
        try:
            self.settings.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._claiming, ignore_errors=True)
            self._claiming.mkdir(mode=0o700)
            names = sorted(str(file.path) for file in files if file.area == "settings")
            self._write(self._claiming, PlannedFile("settings", _NAMES, "\n".join(names).encode()))
            for file in files:
                self._write(self._claiming / file.area, file)
            for directory, _, _ in os.walk(self._claiming):
                _sync(Path(directory))
            self._claiming.rename(self._claimed)
            _sync(self.settings)
        except OSError as error:
            raise ApplianceError(
                f"{self.settings} cannot be written: {error.strerror or error}; see `gateway doctor`"
            ) from error

    def commit(self) -> None:
        """Put what was prepared in place, from wherever an earlier try was cut; does nothing when nothing was.

        Raises:
            ApplianceError: the disk refuses; to be called again.
        """
        try:
            if not self.prepared:
                return
            self._remove_strays()
            for area, target in (("state", self.state), ("settings", self.settings)):
                self._move(self._claimed / area, target)
            # In one step what was prepared is over; a half-removed directory would not tell what it was.
            shutil.rmtree(self._claiming, ignore_errors=True)
            self._claimed.rename(self._claiming)
            _sync(self.settings)
            shutil.rmtree(self._claiming, ignore_errors=True)
        except OSError as error:
            raise ApplianceError(
                f"{self.settings} cannot be written: {error.strerror or error}; start the device again"
            ) from error

    def _write(self, directory: Path, file: PlannedFile) -> None:
        path = directory / file.path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, file.mode), "wb") as out:
            os.fchmod(out.fileno(), file.mode)  # whatever the umask
            self._give(out.fileno(), file.owner)
            out.write(file.content)
            out.flush()
            os.fsync(out.fileno())

    def _remove_strays(self) -> None:
        """Remove what an earlier claim has brought and this one does not: keys that let people in, above all."""
        kept = set((self._claimed / _NAMES).read_text().splitlines())
        for pattern in _BROUGHT:
            for file in self.settings.glob(pattern):
                if str(file.relative_to(self.settings)) not in kept:
                    file.unlink()
                    _sync(file.parent)

    def _move(self, staged: Path, target: Path) -> None:
        found = sorted(path.relative_to(staged) for path in staged.rglob("*") if path.is_file())
        # What makes the device provisioned comes after everything that it names.
        for path in sorted(found, key=lambda path: path == Path(CONFIG)):
            self._directory(target, path, staged / path)
            (staged / path).rename(target / path)
            _sync((target / path).parent)

    def _directory(self, target: Path, path: Path, file: Path) -> None:
        """Make the directory of a file where it is not there, owned like the file that comes into it."""
        owner: Owner = "root" if self.gateway is not None and file.stat().st_uid == 0 else "gateway"
        directory = target
        for part in (None, *path.parts[:-1]):
            directory = directory if part is None else directory / part
            if directory.is_dir():
                continue
            directory.mkdir(mode=_DIRECTORY_MODES[owner])
            directory.chmod(_DIRECTORY_MODES[owner])
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._give(fd, owner)
            finally:
                os.close(fd)
            _sync(directory.parent)

    def _give(self, fd: int, owner: Owner) -> None:
        if self.gateway is not None and owner == "gateway":
            os.fchown(fd, self.gateway.uid, self.gateway.gid)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
