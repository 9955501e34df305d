"""The fleet as rollouts see it: which devices have a pipeline, what they run, and whether they are there."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from cloud_bridge.identity.database import Database
from cloud_bridge.rollout.plan import Heard, Plan
from cloud_bridge.rollout.releases import Release, release_from
from cloud_bridge.rollout.waves import arms_cover
from cloud_bridge.twins.desired import Desired, find_desired
from cloud_bridge.twins.forgotten import forgotten_devices
from cloud_bridge.twins.labels import all_labels
from cloud_bridge.twins.reported import Reported, find_reported
from cloud_bridge.values import GatewayState, PipelineState
from gateway.wire.messages import ModelRef, PipelineStatus


class FleetStates(Protocol):
    """The part of a store that knows the fleet."""

    def gateways(self) -> list[GatewayState]:
        """Return every gateway ever heard of, by name."""
        ...

    def pipelines(self, gateway: str | None = None) -> list[PipelineState]:
        """Return the latest status of every pipeline."""
        ...


@dataclass(frozen=True, slots=True)
class Fleet:
    """All devices at one moment."""

    gateways: Mapping[str, GatewayState]
    statuses: Mapping[tuple[str, str], PipelineStatus]
    labels: Mapping[str, Mapping[str, str]]
    desired: Mapping[str, Desired]
    reported: Mapping[str, Reported]
    gone: frozenset[str] = frozenset()  # revoked, or forgotten: for good, as far as anybody knows

    @classmethod
    def read(cls, states: FleetStates, database: Database, revoked: Collection[str] = ()) -> "Fleet":
        """Read it: the store first, so that nobody waits for a transaction that waits for the store.

        revoked: devices that may not connect any more.

        Raises:
            StoreError: it cannot be read now.
        """
        gateways = {state.gateway: state for state in states.gateways()}
        statuses = {(state.gateway, state.status.pipeline): state.status for state in states.pipelines()}
        with database.transaction(durable=False) as tx:
            gone = forgotten_devices(tx) | frozenset(revoked)
            return cls(gateways, statuses, all_labels(tx), find_desired(tx), find_reported(tx), gone)

    def names(self) -> list[str]:
        """Return every gateway that was heard of, or labelled, by name."""
        return sorted({*self.gateways, *self.labels, *self.desired, *self.reported})

    def labels_of(self, gateway: str) -> Mapping[str, str]:
        """Return the labels of a device."""
        return self.labels.get(gateway, {})

    def meant(self, plan: Plan) -> dict[str, Mapping[str, str]]:
        """Return the devices that a rollout is for, with their labels: those that have the pipeline, and a release.

        Who is gone for good is none of them: it would hold a wave up that waits for half of its devices.
        """
        found = {gateway for gateway, pipeline in self.statuses if pipeline == plan.pipeline}
        found |= {name for name, one in self.reported.items() if one.has(plan.pipeline)}
        arms = [arm.labels for arm in plan.arms]
        return {
            name: self.labels_of(name)
            for name in sorted(found - self.gone)
            if plan.release is not None or arms_cover(arms, self.labels_of(name)) is not None
        }

    def running(self, gateway: str, pipeline: str) -> Release | None:
        """Return what a pipeline runs, as its device says; what it is to run, if it has not said."""
        report = self.reported.get(gateway)
        if report is not None:
            if report.awaits(pipeline):
                return None
            for assignment in report.twin.assignments:
                if assignment.pipeline == pipeline:
                    return release_from(assignment.model)
        status = self.statuses.get((gateway, pipeline))
        if status is not None and status.model is not None:
            return release_from(status.model)
        desired = self.desired.get(gateway)
        return None if desired is None else release_from(desired.model_of(pipeline))

    def way_back(self, gateway: str, pipeline: str) -> Release | None:
        """Return what a device goes back to after a rollout: what it runs.

        Where a person keeps a release on the device, it runs that whatever it is assigned, and a rollout is not to make
        an assignment of it: there it is what is assigned.
        """
        if not self.is_pinned(gateway, pipeline):
            return self.running(gateway, pipeline)
        desired = self.desired.get(gateway)
        return None if desired is None else release_from(desired.model_of(pipeline))

    def is_pinned(self, gateway: str, pipeline: str) -> bool:
        """Tell whether a device has said that a person keeps a release there."""
        report = self.reported.get(gateway)
        update = None if report is None else report.update_of(pipeline)
        return update is not None and update.phase == "pinned"

    def models_of(self, gateway: str) -> dict[str, ModelRef | None]:
        """Return what the pipelines of a device run, as it says in its twin or by their status; None: nothing."""
        told = {name: status.model for (device, name), status in self.statuses.items() if device == gateway}
        report = self.reported.get(gateway)
        return told if report is None else told | report.models()

    def awaits(self, gateway: str, pipeline: str) -> bool:
        """Tell whether a pipeline waits for a release, because its device has none for it."""
        report = self.reported.get(gateway)
        return report is not None and report.awaits(pipeline)

    def heard(self, gateway: str, pipeline: str, offline_since_ns: int = 0) -> Heard:
        """Return what is known of a device now."""
        state, report = self.gateways.get(gateway), self.reported.get(gateway)
        online: Literal["online", "stopped", "offline", "unknown"] = "unknown"
        if state is not None and state.state in {"online", "stopped", "offline"}:
            online = state.state  # type: ignore[assignment]  # checked above
        return Heard(
            online,
            max(0 if state is None else state.seen_at_ns, 0 if report is None else report.received_ns),
            0 if report is None else report.twin.fencing_token,
            None if report is None else report.update_of(pipeline),
            offline_since_ns,
        )
