"""What a recipe is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cloud_bridge.training.release import Release
from gateway.wire.manifest import ModelManifest

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model that ships is made and judged.

    `share` of both functions is the share of the full amount of data: 1 for what ships, less for a quick look.
    """

    name: str
    version: str
    summary: str
    train: Callable[[float], Release]
    evaluate: Callable[[bytes, ModelManifest, float], Figures]
