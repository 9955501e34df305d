"""Volumes as the kernel shows them, for the tests of what looks at them."""

from pathlib import Path

from gateway.appliance.places import Places


def fat_head(label: bytes = b"NO NAME", *, wide: bool = True) -> bytes:
    """The first sectors of a FAT volume."""
    head = bytearray(4096)
    head[0x1FE:0x200] = b"\x55\xaa"
    at_label, at_kind, kind = (0x47, 0x52, b"FAT32   ") if wide else (0x2B, 0x36, b"FAT16   ")
    head[at_label : at_label + 11] = label.ljust(11)
    head[at_kind : at_kind + 8] = kind
    return bytes(head)


def ext_head(label: bytes = b"") -> bytes:
    """The first sectors of an ext4 volume."""
    head = bytearray(4096)
    head[0x438:0x43A] = b"\x53\xef"
    head[0x478:0x488] = label.ljust(16, b"\0")
    return bytes(head)


def plug(places: Places, name: str, head: bytes, *, bus: str = "usb1/1-1", removable: str = "0") -> Path:
    """Show a partition on a bus, as sysfs does, and its first sectors in /dev."""
    disk = places.sysfs / f"devices/pci0/{bus}/block/{name.rstrip('0123456789')}"
    partition = disk / name
    partition.mkdir(parents=True)
    (disk / "removable").write_text(f"{removable}\n")
    (partition / "partition").write_text("1\n")
    block = places.sysfs / "class/block"
    block.mkdir(parents=True, exist_ok=True)
    (block / name).symlink_to(partition)
    (places.devices / name).write_bytes(head)
    return places.devices / name
