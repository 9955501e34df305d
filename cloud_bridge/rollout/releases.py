"""A release by its name and version, as people write it: `person-detector@1.3.0`."""

import re
from typing import Final, Literal, Protocol

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
    release = fit_release(text)
    if release is None:
        raise RolloutError(f"{text!r} is no release; write NAME@VERSION, as in person-detector@1.3.0")
    return release


def release_from(model: ModelRef | None) -> Release | None:
    """Return the release that a model reference means; None for one that no release can be called by.

    Devices name what they run as they like, as does an image that was built with a version of its own. Such a thing
    can be neither given back nor compared with anything.
    """
    return None if model is None else fit_release(f"{model.name}@{model.version}")


def fit_release(text: str) -> Release | None:
    """Read `NAME@VERSION` as it was once written down; None if no release can be called so."""
    match = _RELEASE.fullmatch(text)
    return None if match is None else Release(match[1], match[2])


ReleaseState = Literal["approved", "candidate", "yanked", "unknown"]


class Releases(Protocol):
    """Whoever knows what may be given out."""

    def state_of(self, release: Release) -> ReleaseState:
        """Return what a release is now."""
        ...

    def before(self, release: Release) -> Release | None:
        """Return the newest approved release of the same name with a lower version, None if there is none."""
        ...
