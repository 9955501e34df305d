"""Optional capabilities that the bridge may switch off on a device, by `features` of its desired twin. Pure.

What nobody has switched works as the configuration says, and so does what is switched on: the bridge can take away and
give back, but nothing that a person has not configured at the device. Names that are not known here are kept and
reported all the same: other programs on the device may read them (`gateway ota status --json`).
"""

from collections.abc import Mapping
from typing import Literal

Capability = Literal["snapshots", "shadow"]
"""`snapshots`: pictures and windows as evidence of events. `shadow`: a new release answers live samples beside the old
one before it takes over."""


def is_on(features: Mapping[str, bool], capability: Capability) -> bool:
    """Tell whether a capability is to be used where it is configured."""
    return features.get(capability, True)
