"""Steps that the end-to-end tests share: wait for records, wait for the cloud, look at status and logs."""

import json
from typing import Any

from hil.loopback.rig import Rig, eventually
from hil.loopback.tally import tally_of


def waits(rig: Rig, at_least: int) -> None:
    """Wait until so many records were enqueued."""
    eventually(lambda: tally_of(rig).enqueued >= at_least, f"{at_least} records are enqueued")


def arrives(rig: Rig) -> None:
    """Wait until the cloud has caught up while the gateway goes on."""
    goal = tally_of(rig).enqueued
    eventually(lambda: tally_of(rig).committed >= goal, "the cloud has caught up")


def settle(rig: Rig) -> None:
    """Stop the gateway, then check that each record is there once."""
    assert rig.gateway.stop() == 0
    assert rig.last_run()["drained"]
    eventually(lambda: tally_of(rig).lost == 0, "everything arrived")
    counts = tally_of(rig)
    assert counts.waiting == 0
    assert counts.duplicates == 0
    assert counts.evicted == 0
    assert counts.committed == counts.enqueued > 0
    rig.stop()


def status_of(rig: Rig) -> dict[str, Any]:
    """Return what the gateway says of itself."""
    status = rig.gateway_status()
    assert status is not None, rig.gateway.tail()
    return status


def statuses(rig: Rig) -> dict[str, Any]:
    """Return the status of each pipeline by name."""
    return {pipeline["pipeline"]: pipeline for pipeline in status_of(rig)["pipelines"]}


def goes_on(rig: Rig, pipeline: str, more: int = 5) -> None:
    """Wait until a pipeline has made some more inferences."""
    goal = statuses(rig)[pipeline]["inferences"] + more
    eventually(lambda: statuses(rig)[pipeline]["inferences"] >= goal, f"{pipeline} infers")


def logged(rig: Rig, event: str) -> list[dict[str, Any]]:
    """Return the lines of one event in the log of the gateway."""
    lines = (line for line in rig.gateway.log.read_text().splitlines() if line.startswith("{"))
    return [entry for line in lines if (entry := json.loads(line))["event"] == event]
