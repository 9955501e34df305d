"""Which releases the fleet runs, as its devices say. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from cloud_bridge.twins.reported import Reported
from cloud_bridge.values import PipelineState
from gateway.wire.messages import ModelRef


def models_run(
    pipelines: Iterable[PipelineState], reports: Iterable[Reported], gone: Collection[str] = ()
) -> Mapping[tuple[str, str], ModelRef | None]:
    """Return what each pipeline runs, by gateway and pipeline; None: nothing.

    Devices with a section `ota` say it in their twins. The status of a pipeline travels only where
    `cloud.publish_events` is set, so it counts for what no twin speaks of.

    Args:
        pipelines: as their status has it.
        reports: the last one of each device.
        gone: devices that were revoked or forgotten; what they said last is nobody's any more.
    """
    models = {(one.gateway, one.status.pipeline): one.status.model for one in pipelines}
    for report in reports:
        models |= {(report.gateway, pipeline): model for pipeline, model in report.models().items()}
    return {of: model for of, model in models.items() if of[0] not in gone}


def running_in(
    pipelines: Iterable[PipelineState], reports: Iterable[Reported], gone: Collection[str] = ()
) -> Mapping[tuple[str, str], int]:
    """Count the pipelines by the name and version of the release that they run; arguments as of `models_run`."""
    models = models_run(pipelines, reports, gone).values()
    return Counter((model.name, model.version) for model in models if model is not None)
