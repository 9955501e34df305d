"""The wall clock of one process, set by hand while it runs: libfaketime with a file that it reads anew each time.

The clocks that count from boot stay true, as they do on a machine whose time of day is set.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

_LIBRARIES: Final = ("*/faketime/libfaketimeMT.so.1", "faketime/libfaketimeMT.so.1")

YEAR: Final = 365.25 * 86_400


class WallClock:
    """Knob: `offset_seconds`, by `set_to`, `step` or `true`."""

    def __init__(self, directory: Path) -> None:
        found = [file for pattern in _LIBRARIES for file in Path("/usr/lib").glob(pattern)]
        if not found:
            pytest.skip("libfaketime is not installed: apt-get install libfaketime")
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / "faketime"
        self.offset_seconds = 0.0
        self.true()
        self.environment = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    @property
    def command(self) -> list[str]:
        """What stands before the command of the process."""
        return ["env", *(f"{name}={value}" for name, value in self.environment.items())]

    def set_to(self, moment: datetime) -> None:
        """Set the clock, as a person or a time server does; it goes on from there."""
        self._shift(moment.timestamp() - datetime.now(UTC).timestamp())

    def step(self, seconds: float) -> None:
        """Move it from where it is."""
        self._shift(self.offset_seconds + seconds)

    def true(self) -> None:
        """Let it be right."""
        self._shift(0.0)

    def _shift(self, offset_seconds: float) -> None:
        self.offset_seconds = offset_seconds
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{offset_seconds:+.3f}\n")
        fresh.replace(self._file)
