"""What a recipe is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud_bridge.training.release import Release
from gateway.wire.manifest import Baseline, ModelManifest

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Recording:
    """One window from the field."""

    samples: NDArray[np.float64]  # (samples, channels), in the unit of the source
    origin: str  # gateway/pipeline: where it came from
    channel: int | None = None  # the one that is meant, where a model looks at each alone


@dataclass(frozen=True, slots=True)
class Field:
    """Windows from the field, each in one part only."""

    train: tuple[Recording, ...] = ()  # healthy
    validation: tuple[Recording, ...] = ()  # healthy, for the threshold
    held: tuple[Recording, ...] = ()  # healthy, to judge with
    anomalous: tuple[Recording, ...] = ()  # to judge with


NO_FIELD = Field()


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made. `share` is the share of the recipe's own data: 1 for what ships, less for a quick look."""

    version: str
    share: float = 1.0
    field: Field = NO_FIELD
    parent: str | None = None  # `name version` of the release that this one comes from
    released_at: str = ""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model that ships is made and judged.

    `share` is the share of the full amount of data: 1 for what ships, less for a quick look. `evaluate` judges a model
    on the held-back data of the recipe and of the field. `baseline` describes healthy data that a model was not
    trained on, and its answers to them.
    """

    name: str
    version: str
    summary: str
    make: Callable[[Order], Release]
    evaluate: Callable[[bytes, ModelManifest, float, Field], Figures]
    baseline: Callable[[bytes, ModelManifest, float, Field], Baseline]

    def train(self, share: float) -> Release:
        """Make the release as it ships, or with less data."""
        return self.make(Order(self.version, share))
