"""The machine as checks see it; tests bring a tree of their own."""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _may_open(node: Path) -> bool:
    return os.access(node, os.R_OK | os.W_OK)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where devices are found."""

    root: Path = Path("/")
    library_loads: Callable[[str], bool] = _loads
    may_open: Callable[[Path], bool] = _may_open

    def at(self, path: Path) -> Path:
        """Return where a path of the configuration is in this machine's tree."""
        return self.root / path.relative_to("/") if path.is_absolute() else path

    def devices(self, pattern: str) -> list[Path]:
        """Return device nodes, in order."""
        return sorted((self.root / "dev").glob(pattern))

    def shown(self, node: Path) -> str:
        """Return a node's path as a person knows it."""
        return f"/{node.relative_to(self.root)}" if node.is_relative_to(self.root) else str(node)
