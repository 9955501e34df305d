"""Says before the first download that a disk is too small, and not after half an hour."""

import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from image.builder.errors import MissingError

# What a build takes on the disk at its fullest: measured with uefi-amd64, and rounded up.
TREES_BYTES: Final = 3_500_000_000  # the cache, when nothing is in it
ROOT_BYTES: Final = 2_000_000_000
VARIANT_BYTES: Final = 2_000_000_000  # packed root, kernel images, bundle and disk


def check(wanted: Mapping[Path, int]) -> None:
    """Look for free space.

    Args:
        wanted: bytes by folder; those of folders on one file system are added up.

    Raises:
        MissingError: there is less.
    """
    devices: defaultdict[int, list[Path]] = defaultdict(list)
    for folder in wanted:
        devices[folder.stat().st_dev].append(folder)
    short = []
    for folders in devices.values():
        needed, free = sum(wanted[folder] for folder in folders), shutil.disk_usage(folders[0]).free
        if free < needed:
            places = " and ".join(str(folder) for folder in folders)
            short.append(f"{places}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    if short:
        raise MissingError("; ".join(short) + "; free some, or name other folders with --output and SLUICE_IMAGE_CACHE")
