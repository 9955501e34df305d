"""What devices say that they run. The latest report of each is kept, as it came."""

from collections.abc import Collection
from dataclasses import dataclass

from cloud_bridge.identity.database import Transaction
from gateway.wire.messages import ModelRef, Twin, UpdateState, decode


@dataclass(frozen=True, slots=True)
class Reported:
    """The last report of a device."""

    gateway: str
    received_ns: int
    twin: Twin

    def has(self, pipeline: str) -> bool:
        """Tell whether the device has a pipeline of this name."""
        said = {one.pipeline for one in self.twin.assignments} | {one.pipeline for one in self.twin.updates}
        return pipeline in said or self.awaits(pipeline)

    def awaits(self, pipeline: str) -> bool:
        """Tell whether the pipeline runs nothing, because no release for it is on the device."""
        return pipeline in self.twin.awaiting

    def models(self) -> dict[str, ModelRef | None]:
        """Return what each pipeline runs; None: nothing. Images of the system are not among it."""
        runs: dict[str, ModelRef | None] = {
            one.pipeline: one.model for one in self.twin.assignments if one.kind == "model"
        }
        return runs | dict.fromkeys(self.twin.awaiting)

    def update_of(self, pipeline: str) -> UpdateState | None:
        """Return how far a pipeline is, None if the report does not say."""
        return next((one for one in self.twin.updates if one.pipeline == pipeline), None)


def put_report(tx: Transaction, gateway: str, payload: bytes, twin: Twin, now_ns: int) -> None:
    """Keep a report; it takes the place of the one before."""
    tx.change(
        "INSERT INTO fleet_reported (gateway, received_ns, token, body) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (gateway) DO UPDATE SET received_ns = excluded.received_ns, token = excluded.token,"
        " body = excluded.body",
        (gateway, now_ns, twin.fencing_token, payload),
    )


def find_reported(tx: Transaction, gateways: Collection[str] | None = None) -> dict[str, Reported]:
    """Return the last reports of some devices, or of all."""
    wanted = None if gateways is None else set(gateways)
    rows = tx.rows("SELECT gateway, received_ns, body FROM fleet_reported ORDER BY gateway")
    return {
        gateway: Reported(gateway, received_ns, decode(bytes(body), Twin))
        for gateway, received_ns, body in rows
        if wanted is None or gateway in wanted
    }
