"""Provisions the device below a folder, once: the process that the tests kill.

`careless` is the control: it removes the claim first and writes the files straight to their places.
"""

import sys
from pathlib import Path

from gateway.appliance.finders import FolderFinder
from gateway.appliance.places import Places
from gateway.appliance.placing import Placing
from gateway.appliance.plan import BASE, plan
from gateway.appliance.provisioning import Provisioner
from tests.gateway.appliance.claims import NOW_NS


class NothingHereError(Exception):
    """No claim is offered any more."""


def nothing(_seconds: float) -> None:
    raise NothingHereError


def main(way: str, root: Path) -> None:
    places = Places.below(root)
    finder = FolderFinder(root / "stick", "stick")
    if way == "careless":
        (offer,) = finder.offers()
        claim = offer.claim()
        offer.erase()
        for file in reversed(plan(claim, BASE, origin="stick", image="", now_ns=NOW_NS)):
            target = (places.settings if file.area == "settings" else places.state) / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.content)
            target.rename(target)  # so that there is a moment to be killed in
        return
    Provisioner(
        places=places,
        placing=Placing(places.settings, places.state),
        finders=[finder],
        identifiers=lambda: {"SN-0042"},
        say=lambda _: None,
        now_ns=lambda: NOW_NS,
    ).scan(nothing)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
