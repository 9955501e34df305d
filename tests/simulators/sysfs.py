"""Makes a tree like sysfs, with nodes in dev, out of recordings of umockdev's (`*.umockdev`).

The format is umockdev's: P path, E property of the uevent, A attribute, L link. Only what tests ask for is made: the
directories of devices with their attributes, and the links by which buses and classes list them.
"""

import shutil
from pathlib import Path
from typing import Final

RECORDINGS: Final = Path(__file__).parents[1] / "udev" / "devices"
_BUSES: Final = frozenset({"usb", "pci", "platform", "i2c", "spi", "iio", "gpio", "acpi", "usb-serial"})


class SysfsTree:
    """A root directory with `sys` and `dev`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._plugged: dict[str, list[Path]] = {}
        (root / "dev").mkdir(parents=True, exist_ok=True)

    def plug(self, recording: str) -> "SysfsTree":
        """Add the devices of a recording."""
        made = self._plugged.setdefault(recording, [])
        for block in (RECORDINGS / f"{recording}.umockdev").read_text().split("\n\n"):
            if block.strip():
                made += self._device(block.strip().splitlines())
        return self

    def unplug(self, recording: str) -> None:
        """Take the devices of a recording away again, but for those others hang on."""
        for path in self._plugged.pop(recording):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def set(self, device: str, attribute: str, value: str) -> None:
        """Change an attribute of the device with this name."""
        (directory,) = [path for path in (self.root / "sys" / "devices").rglob(device) if path.is_dir()]
        (directory / attribute).parent.mkdir(parents=True, exist_ok=True)
        (directory / attribute).write_text(value + "\n")

    def _device(self, lines: list[str]) -> list[Path]:
        path = lines[0].removeprefix("P: ")
        directory = self.root / "sys" / path.lstrip("/")
        made = [] if directory.exists() or _carries_others(path) else [directory]
        directory.mkdir(parents=True, exist_ok=True)
        properties = dict(line[3:].split("=", 1) for line in lines if line.startswith("E: "))
        (directory / "uevent").write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        for line in lines:
            if line.startswith("A: "):
                name, value = line[3:].split("=", 1)
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (directory / name).write_text(value.encode().decode("unicode_escape"))
            elif line.startswith("L: driver="):
                link = directory / "driver"
                if not link.is_symlink():
                    link.symlink_to(line.removeprefix("L: driver="))
        made.append(self._listed(directory, properties.get("SUBSYSTEM", "")))
        node = properties.get("DEVNAME")
        if node is not None:
            file = self.root / node.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            made.append(file)
        return made

    def _listed(self, directory: Path, subsystem: str) -> Path:
        where = f"bus/{subsystem}/devices" if subsystem in _BUSES else f"class/{subsystem}"
        link = self.root / "sys" / where / directory.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(directory)
        return link


def _carries_others(path: str) -> bool:
    return path.rsplit("/", 1)[1].startswith(("usb", "0000:00", "soc"))
