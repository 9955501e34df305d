"""A device before a repository: everything real but the clocks."""

import json
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gateway.config import Ota
from gateway.ota.fetch import Repository
from gateway.ota.fetch_budget import Spend, Unmetered
from gateway.ota.fetch_pace import Limits
from gateway.ota.ways import DirectoryWay, Way
from tests.simulators.hostile_repository import NOW, SignedRepository

QUICK = Limits(deadline_seconds=10.0, min_bytes_per_second=64, window_seconds=1.0)


def nanoseconds(at: datetime) -> int:
    return int(at.timestamp()) * 1_000_000_000


@dataclass
class Device:
    """Its state lies in `state`; `wall` is what its clock says. `repository()` is a start of the program."""

    state: Path
    served: SignedRepository
    stick: Path
    wall: datetime = NOW
    meter: Spend = field(default_factory=Unmetered)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root_file = self.state.parent / "root.json"
        self.root_file.write_bytes(self.served.anchor)

    def repository(self, way: Way | None = None, **more: Any) -> Repository:
        options: dict[str, Any] = {"metadata_limits": QUICK, "file_limits": QUICK, "built_ns": 0} | more
        settings: dict[str, Any] = {"root_file": self.root_file, "hardware": "test-board"} | self.settings
        return Repository(
            Ota(**settings),
            self.state,
            way or DirectoryWay(self.stick),
            meter=self.meter,
            now_ns=lambda: nanoseconds(self.wall),
            monotonic_ns=time.monotonic_ns,
            **options,
        )

    def refresh(self) -> Repository:
        """Serve what the repository has now from a directory, and refresh from it after a new start."""
        self.served.save(self.stick)
        repository = self.repository()
        repository.refresh()
        return repository

    def later(self, **passed: float) -> None:
        self.wall += timedelta(**passed)

    def forget_cache(self) -> None:
        """Somebody removes the metadata, not the floors."""
        for file in sorted((self.state / "ota" / "metadata").rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()

    def version(self, role: str) -> int | None:
        """The version of a role in the cache."""
        file = self.state / "ota" / "metadata" / f"{role}.json"
        return int(json.loads(file.read_bytes())["signed"]["version"]) if file.exists() else None
