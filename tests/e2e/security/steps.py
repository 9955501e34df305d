"""Steps that the tests of secured sites share: enrol, look at the identity, ask the bridge what happened."""

import json
import shutil
from typing import Any

from gateway.control import ask
from hil.loopback.rig import GATEWAY_ID, Rig, eventually
from hil.loopback.security import SecuredSite
from hil.loopback.tally import tally_of
from tests.e2e.flow import status_of, statuses


def site_of(rig: Rig) -> SecuredSite:
    """Return what makes the rig secure."""
    assert rig.site is not None
    return rig.site


def enrolled(rig: Rig) -> Rig:
    """Start everything, and wait until the gateway has a certificate and the cloud its first records."""
    rig.start()
    waits_for_identity(rig, "valid")
    eventually(lambda: tally_of(rig).committed > 0, "records arrive with a certificate")
    return rig


def identity_of(rig: Rig) -> dict[str, Any]:
    """Return what `gateway identity status` shows."""
    found = rig.gateway_identity()
    assert found is not None, rig.gateway.tail()
    return found


def waits_for_identity(rig: Rig, state: str, saying: str = "", seconds: float = 30.0) -> dict[str, Any]:
    """Wait until the identity is in a state, and says why."""

    def there() -> bool:
        found = rig.gateway_identity() or {}
        return found.get("state") == state and saying in str(found.get("reason", ""))

    eventually(there, f"the identity is {state} {saying!r} ({rig.gateway_identity()})", seconds)
    return identity_of(rig)


def renew(rig: Rig) -> int:
    """Have the gateway attest itself now; returns how often it has since its start."""
    before = int(identity_of(rig)["renewals"])
    ask(rig.state_directory / "gateway.sock", "renew-identity")
    eventually(lambda: int(identity_of(rig)["renewals"]) > before, "the certificate is renewed")
    return int(identity_of(rig)["renewals"])


def tries_to_renew(rig: Rig) -> None:
    """Have the gateway ask the bridge now, whatever comes of it."""
    ask(rig.state_directory / "gateway.sock", "renew-identity")


def says(rig: Rig, pipeline: str, *words: str) -> None:
    """Wait until a pipeline does not run, and the status says why."""

    def told() -> bool:
        found = statuses(rig)[pipeline]
        return found["state"] != "running" and all(word in json.dumps(found) for word in words)

    eventually(told, f"the status of {pipeline} says {words} ({statuses(rig)[pipeline]})")


def runs(rig: Rig, pipeline: str) -> None:
    """Wait until a pipeline makes inferences."""
    eventually(lambda: statuses(rig)[pipeline]["inferences"] > 0, f"{pipeline} runs ({status_of(rig)})")


def happened(rig: Rig) -> dict[str, dict[str, Any]]:
    """Return the events of the identity service by kind, the latest of each."""
    lines = site_of(rig).in_cloud("identity", "events", "--json").splitlines()
    found: dict[str, dict[str, Any]] = {}
    for event in map(json.loads, lines):
        found.setdefault(event["kind"], event)
    return found


def reboots(rig: Rig, measured: dict[int, bytes] | None = None) -> None:
    """Pull the plug of the machine; then measure what boots, and start the gateway."""
    site = site_of(rig)
    assert site.tpm is not None
    rig.gateway.kill()
    site.tpm.kill()
    site.measured = measured or site.measured
    site.boot()
    rig.start_gateway()


def revoke(rig: Rig, why: str = "stolen") -> None:
    """Take the gateway's identity back."""
    site_of(rig).in_cloud("identity", "revoke", GATEWAY_ID, "--why", why)


def claim_again(rig: Rig) -> None:
    """Leave a claim with which this gateway may take its own name again."""
    site = site_of(rig)
    site.on_device("identity", "enrol", site.claim_code("--replace"))


def copy_state(rig: Rig, other: Rig) -> None:
    """Copy the gateway's disk to another rig, as a thief does."""
    shutil.rmtree(other.state_directory)
    shutil.copytree(rig.state_directory, other.state_directory, ignore=shutil.ignore_patterns("*.sock", "*.lock"))
