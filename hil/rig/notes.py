"""What must be the same again for a rig that was kept on disk to go on: who the board is, where its cloud listens.

A claim names ports, and a snapshot is of one board: a session that finds both noted begins where the last one stopped.
"""

import json
import os
import uuid
from pathlib import Path
from typing import Any, Final

from hil.loopback.children import free_port

PLACE: Final = "SLUICE_RIG_STATE"
"""The variable of the environment that names the folder in which a rig is kept."""


class Notes:
    """The notes of one target, in a file or, where nothing is kept, for as long as this lives."""

    def __init__(self, file: Path | None, image: Path) -> None:
        """Read what is noted, if it is of this image; what is of another one is of no use.

        Args:
            file: of the notes; None: nothing outlives the session.
            image: the disk that the board was flashed with.
        """
        self._file = file
        of = [str(image), image.stat().st_mtime_ns] if image.exists() else [str(image)]
        known: dict[str, Any] = json.loads(file.read_text()) if file is not None and file.exists() else {}
        self._notes = known if known.get("of") == of else {"of": of, "ports": {}, "states": {}}

    @property
    def serial(self) -> str:
        """The board's serial number."""
        if "serial" not in self._notes:
            self._notes["serial"] = uuid.uuid4().hex[:12]
            self._write()
        return str(self._notes["serial"])

    def port(self, name: str) -> int:
        """Return the port that something of the cloud has on loopback: the noted one, or one that is free now."""
        ports: dict[str, int] = self._notes["ports"]
        if name not in ports:
            ports[name] = free_port()
            self._write()
        return ports[name]

    @property
    def states(self) -> dict[str, frozenset[str]]:
        """The states that are kept, and what was plugged in then."""
        return {state: frozenset(plugged) for state, plugged in self._notes["states"].items()}

    def keep(self, state: str, plugged: frozenset[str]) -> None:
        """Note that a state is kept."""
        self._notes["states"][state] = sorted(plugged)
        self._write()

    def forget(self) -> None:
        """Note that nothing is kept: the board is flashed anew."""
        self._notes["states"] = {}
        self._write()

    def _write(self) -> None:
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(".new")
            partial.write_text(json.dumps(self._notes))
            partial.replace(self._file)


def place() -> Path | None:
    """Return the folder in which rigs are kept; None: they are gone with the session."""
    named = os.environ.get(PLACE)
    return Path(named) if named else None
