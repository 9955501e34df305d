"""What devices say in their twins that they run, as a bridge has it beside its store."""

import time
from pathlib import Path

from cloud_bridge.config import Store
from cloud_bridge.twins.database import open_fleet
from cloud_bridge.twins.reported import put_report
from gateway.wire.messages import Assignment, ModelRef, Twin, encode
from tests.simulators.samples import AT


def report(place: Path, gateway: str, pipeline: str, model: ModelRef) -> None:
    """Have a device say that a pipeline runs a release; its status is not told, as by default. Store: bridge.db."""
    twin = Twin(version=1, fencing_token=1, at=AT, assignments=[Assignment(pipeline=pipeline, model=model)])
    database = open_fleet(Store(url=f"sqlite:///{place}/bridge.db"))
    try:
        with database.transaction() as tx:
            put_report(tx, gateway, encode(twin), twin, time.time_ns())
    finally:
        database.close()
