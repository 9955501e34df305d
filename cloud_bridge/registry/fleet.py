"""Which releases the fleet runs, as its devices say. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping

from cloud_bridge.twins.reported import Reported
from cloud_bridge.values import PipelineState
from gateway.wire.messages import ModelRef


def models_run(
    pipelines: Iterable[PipelineState], reports: Iterable[Reported]
) -> Mapping[tuple[str, str], ModelRef | None]:
    """Return what each pipeline runs, by gateway and pipeline; None: nothing.

    Devices with a section `ota` say it in their twins. The status of a pipeline travels only where
    `cloud.publish_events` is set, so it counts for what no twin speaks of.
    """
    models = {(one.gateway, one.status.pipeline): one.status.model for one in pipelines}
    for report in reports:
        models |= {(report.gateway, pipeline): model for pipeline, model in report.models().items()}
    return models


def running_in(pipelines: Iterable[PipelineState], reports: Iterable[Reported]) -> Mapping[tuple[str, str], int]:
    """Count the pipelines by the name and version of the release that they run."""
    models = models_run(pipelines, reports).values()
    return Counter((model.name, model.version) for model in models if model is not None)
