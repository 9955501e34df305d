"""How a path in the configuration becomes a path on the disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CREDENTIALS: Final = "${CREDENTIALS_DIRECTORY}"
"""Stands for the directory where systemd puts the unit's credentials (`LoadCredential=`)."""


class UnusablePathError(ValueError):
    """A path that cannot be used; the message is for a person."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What paths in a file are relative to.

    `require_files` tells whether files the configuration names must be there, as when it is about to be run;
    `take_stock` whether its models and video files are looked for, too. `file` is the configuration, where it is one.
    """

    directory: Path
    environment: Mapping[str, str]
    require_files: bool = True
    take_stock: bool = False
    file: Path | None = None

    def resolved(self, key: str, text: str) -> str:
        """Return the absolute form of a path that stands under `key`.

        Raises:
            UnusablePathError: empty, with a NUL, or with a variable that has no place here.
        """
        if not text or "\0" in text:
            raise UnusablePathError("the path is empty or has a NUL character", "give the path of a file or directory")
        if CREDENTIALS in text:
            text = self._credential(key, text)
        if "${" in text:
            raise UnusablePathError(
                "variables are not replaced here", f"write the path out; only {CREDENTIALS} is known"
            )
        if text.startswith("~"):
            raise UnusablePathError(f'"{text}" depends on who runs the program', "write the path out")
        return str(self.directory / text)

    def _credential(self, key: str, text: str) -> str:
        if not key.endswith("_file"):
            remedy = "write the path out"
            raise UnusablePathError(f"{CREDENTIALS} stands for secrets and is known in `…_file` keys only", remedy)
        if not text.startswith(CREDENTIALS + "/"):
            raise UnusablePathError(f"{CREDENTIALS} must come first", f"write {CREDENTIALS}/name")
        directory = self.environment.get("CREDENTIALS_DIRECTORY")
        if directory is not None:
            return directory + text.removeprefix(CREDENTIALS)
        if self.require_files:
            remedy = "run under the unit that has LoadCredential=, or check with --no-files"
            raise UnusablePathError("CREDENTIALS_DIRECTORY is not set", remedy)
        return "/run/credentials" + text.removeprefix(CREDENTIALS)
