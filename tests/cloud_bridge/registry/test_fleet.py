"""Which releases the fleet runs, from what devices say in twins and in the status of pipelines."""

from cloud_bridge.registry.fleet import running_in
from cloud_bridge.twins.reported import Reported
from cloud_bridge.values import PipelineState
from gateway.wire.messages import Assignment, ModelRef, PipelineStatus, Twin
from tests.simulators.samples import AT


def model(version: str) -> ModelRef:
    return ModelRef(name="detector", version=version)


def state(gateway: str, version: str, pipeline: str = "camera") -> PipelineState:
    status = PipelineStatus(
        pipeline=pipeline, state="running", source_state="streaming", at=AT, model=model(version) if version else None
    )
    return PipelineState(gateway, 1, status)


def reported(gateway: str, *assignments: Assignment, awaiting: tuple[str, ...] = ()) -> Reported:
    return Reported(
        gateway, 1, Twin(version=1, fencing_token=1, at=AT, assignments=[*assignments], awaiting=[*awaiting])
    )


def camera(version: str) -> Assignment:
    return Assignment(pipeline="camera", model=model(version))


def test_twins_count_where_no_status_is_told() -> None:
    image = Assignment(pipeline="os:board", kind="os", model=ModelRef(name="board", version="0.1.0"))
    found = running_in([], [reported("gw-1", camera("1.2.0"), image), reported("gw-2", camera("1.2.0"))])
    assert found == {("detector", "1.2.0"): 2}, "an image of the system is no release of a model"


def test_a_pipeline_counts_once_and_its_twin_goes_first() -> None:
    states = [state("gw-1", "1.0.0"), state("gw-1", "1.1.0", "door"), state("gw-2", "1.1.0"), state("gw-3", "")]
    found = running_in(states, [reported("gw-1", camera("1.2.0"))])
    assert found == {("detector", "1.2.0"): 1, ("detector", "1.1.0"): 2}


def test_a_pipeline_that_waits_for_a_release_runs_none() -> None:
    assert running_in([state("gw-1", "1.0.0")], [reported("gw-1", awaiting=("camera",))]) == {}


def test_what_a_device_that_is_gone_said_last_does_not_count() -> None:
    states = [state("gw-1", "1.0.0"), state("gw-2", "1.1.0"), state("gw-3", "1.1.0", "door")]
    found = running_in(states, [reported("gw-2", camera("1.2.0")), reported("gw-4", camera("1.2.0"))], {"gw-1", "gw-4"})
    assert found == {("detector", "1.2.0"): 1, ("detector", "1.1.0"): 1}
