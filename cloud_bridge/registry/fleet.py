"""Which releases the fleet runs, as its pipelines say. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping

from cloud_bridge.values import PipelineState


def running_in(pipelines: Iterable[PipelineState]) -> Mapping[tuple[str, str], int]:
    """Count the pipelines by the name and version of the release that they run."""
    models = (one.status.model for one in pipelines)
    return Counter((model.name, model.version) for model in models if model is not None)
