"""What a rig can do to a device besides switching it and typing into its console: the roles that tests ask for.

labgrid has protocols for power, console, commands and files. These are the rest, for a virtual board and a real one.
"""

import abc
from pathlib import Path
from typing import Literal

Role = Literal["accelerator", "camera", "sensor", "stick"]
"""What can be plugged: an accelerator on USB, a camera, a sensor on a serial line, a USB stick."""
Scene = Literal["dark", "bright"]


class PlugProtocol(abc.ABC):
    """Plugs things into the device and pulls them out."""

    @abc.abstractmethod
    def plug(self, role: Role, image: Path | None = None) -> None:
        """Plug something in; image: of the stick."""

    @abc.abstractmethod
    def unplug(self, role: Role) -> None:
        """Pull it out."""

    @abc.abstractmethod
    def show(self, scene: Scene) -> None:
        """Change what the camera sees."""

    @abc.abstractmethod
    def feed(self, line: bytes) -> None:
        """Let the sensor say a line."""


class LinkProtocol(abc.ABC):
    """The network cable of the device."""

    @abc.abstractmethod
    def pull(self) -> None:
        """Pull the cable."""

    @abc.abstractmethod
    def put_back(self) -> None:
        """Put it back."""


class StorageProtocol(abc.ABC):
    """The disk of the device, as one gets at it from outside; it must be off."""

    @abc.abstractmethod
    def flash(self) -> None:
        """Write the image, as the factory does."""

    @abc.abstractmethod
    def corrupt(self, partition: str, *, near: bytes | None = None, from_end: int | None = None) -> int:
        """Flip one bit of a partition; returns its offset on the disk.

        In the middle of what is written there, or where the bytes `near` stand first, or so many bytes before the end
        of what is written.
        """

    @abc.abstractmethod
    def raw(self, target: Path) -> Path:
        """Read the whole disk into a file."""


class SnapshotProtocol(abc.ABC):
    """Keeps a running device as it is. Only a virtual board can."""

    @abc.abstractmethod
    def save(self, name: str) -> None:
        """Keep it under a name."""

    @abc.abstractmethod
    def restore(self, name: str) -> None:
        """Go back to it."""

    @abc.abstractmethod
    def kept(self) -> frozenset[str]:
        """Return the names under which it is kept, also by an earlier session of which the files are there."""
