"""Claims as a bridge writes them, for the tests of the device."""

from pathlib import Path
from typing import Any

import yaml

from gateway.appliance.places import Places
from gateway.wire.identity import ClaimCode

TOKEN = "mnbvcxzasdfghjkpqwertyu234567892"
FINGERPRINT = "5e" * 32
CODE = ClaimCode(token=TOKEN, fingerprint=FINGERPRINT).text()
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEd3tPmDq1q1mM6sX0kH4mWz5XoQ9n1s3sQ4QxTqB7hP me@laptop"
NOW_NS = 1_770_000_000_000_000_000


def claim(**more: Any) -> dict[str, Any]:
    """A claim as plain values."""
    return {
        "version": 1,
        "gateway": "dock-7",
        "identity": "https://bridge.example:8471",
        "code": CODE,
        "brokers": ["mqtts://broker.example:8883"],
        **more,
    }


def whole_claim(**more: Any) -> dict[str, Any]:
    """A claim that says everything which becomes a file."""
    return claim(
        time_zone="Europe/Berlin",
        ntp=["ntp.plant.example"],
        network=[{"interface": "en*", "address": "192.0.2.7/24", "gateway": "192.0.2.1", "dns": ["192.0.2.1"]}],
        ssh=[SSH_KEY],
        secrets={"dock-camera": "s3cret-of-camera"},
        labels={"site": "berlin"},
        **more,
    )


def text(**more: Any) -> bytes:
    """A claim file."""
    return yaml.safe_dump(claim(**more), sort_keys=False).encode()


def device(root: Path) -> Places:
    """An unprovisioned device below a folder."""
    places = Places.below(root)
    for directory in (
        places.settings,
        places.state,
        places.esp,
        places.system,
        places.share,
        places.sysfs,
        places.devices,
    ):
        directory.mkdir(parents=True, exist_ok=True)
    places.release.write_text('{"version": "2026.01", "target": "uefi-amd64"}')
    return places
