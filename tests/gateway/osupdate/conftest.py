"""One vendor, one device."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.osupdate.rig import Device, Vendor


@pytest.fixture
def vendor(tmp_path: Path) -> Iterator[Vendor]:
    """Who publishes images."""
    vendor = Vendor(tmp_path / "vendor")
    yield vendor
    vendor.site.db.close()


@pytest.fixture
def device(tmp_path: Path, vendor: Vendor) -> Device:
    """A device that runs 1.0.0 in slot a."""
    return Device(tmp_path / "device", vendor)
