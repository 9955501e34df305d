"""A release by its name and version, as people write it: `person-detector@1.3.0`."""

import re
from typing import Final

import msgspec

from cloud_bridge.rollout.errors import RolloutError
from gateway.wire.messages import ModelRef

_RELEASE: Final = re.compile(r"([a-z0-9][a-z0-9-]{0,62})@(\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?)")


class Release(msgspec.Struct, frozen=True, order=True):
    """Name and version of a release."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def ref(self) -> ModelRef:
        """The release as twins name it. Which file runs depends on the device, so there is no digest."""
        return ModelRef(name=self.name, version=self.version)


def release_of(text: str) -> Release:
    """Read `NAME@VERSION`.

    Raises:
        RolloutError: it is something else.
    """
    match = _RELEASE.fullmatch(text)
    if match is None:
        raise RolloutError(f"{text!r} is no release; write NAME@VERSION, as in person-detector@1.3.0")
    return Release(match[1], match[2])


def release_from(model: ModelRef | None) -> Release | None:
    """Return the release that a model reference means."""
    return None if model is None else Release(model.name, model.version)
