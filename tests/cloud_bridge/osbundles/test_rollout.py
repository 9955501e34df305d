"""A rollout of an image of the system: the bridge's code, and on each device the gateway's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_bridge.identity.database import SqliteDatabase
from cloud_bridge.rollout.plan import Plan
from cloud_bridge.rollout.releases import Release
from cloud_bridge.twins.database import FLEET
from cloud_bridge.twins.reported import put_report
from gateway.wire.messages import Twin, decode, os_pipeline
from tests.cloud_bridge.rollout.kit import Registered, Stage
from tests.simulators.os_device import OsDevice

NAME = "sluice-uefi-amd64"
OLD, NEW = Release(NAME, "1.0.0"), Release(NAME, "1.1.0")
FLEET_SIZE = 200
BAD_EVERY = 20


class SystemStage(Stage):
    """A fleet of appliances. They have told of their system before the rollout begins."""

    def populate(self, directory: Path, count: int, **knobs: object) -> list[OsDevice]:
        made = []
        for number in range(count):
            name = f"gw-{number:03}"
            device = OsDevice(name, directory / name, **knobs)  # type: ignore[arg-type]
            self.devices[name] = device  # type: ignore[assignment]  # what the stage needs of a device, it has
            self.store.add(name, None, seen_ns=self.now_ns)
            with self.database.transaction() as tx:
                put_report(tx, name, device.report(), decode(device.report(), Twin), self.now_ns)
            made.append(device)
        return made

    def system_plan(self, waves: str) -> Plan:
        plan = self.plan(waves, release=str(NEW), soak_seconds=60)
        return Plan(**{name: getattr(plan, name) for name in Plan.__struct_fields__} | {"pipeline": os_pipeline(NAME)})

    def versions(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for device in self.devices.values():
            found[device.model.version] = found.get(device.model.version, 0) + 1
        return found


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[SystemStage]:
    database = SqliteDatabase(tmp_path / "fleet.db", FLEET)
    yield SystemStage(database, Registered({NEW: "approved"}))
    database.close()


def test_an_image_goes_through_a_fleet_in_waves(tmp_path: Path, stage: SystemStage) -> None:
    stage.populate(tmp_path, FLEET_SIZE)
    made = stage.desk.create(stage.system_plan("1, 10%, rest"))
    stage.turn()
    assert stage.versions() == {"1.0.0": FLEET_SIZE - 1, "1.1.0": 1}
    for _ in range(30):
        stage.turn()
    assert stage.rollout(made.id).phase == "done"
    assert stage.versions() == {"1.1.0": FLEET_SIZE}


@pytest.mark.parametrize("fate", ["unhealthy", "panics", "forged"])
def test_an_image_that_fails_on_every_twentieth_device_is_halted_and_given_back(
    tmp_path: Path, stage: SystemStage, fate: str
) -> None:
    devices = stage.populate(tmp_path, FLEET_SIZE, offered=("1.0.0", "1.1.0"))
    for device in devices[::BAD_EVERY]:
        device.fates = lambda version: fate if version == "1.1.0" else "healthy"  # type: ignore[assignment, return-value]
    made = stage.desk.create(stage.system_plan("1, 40%, rest"))
    for _ in range(20):
        stage.turn()
    rollout = stage.rollout(made.id)
    assert rollout.phase == "halted"
    assert rollout.reason.startswith("failing-share"), rollout.reason
    # The canary keeps the image, unless it was the one that failed; its wave gets back what it had.
    assert stage.versions().get("1.1.0", 0) <= 1
    report = stage.desk.report(made.id)
    assert report.recovered == report.returned
    assert all(len(device.installs) <= 1 for device in devices), "the old slot is taken again, nothing is installed"


def test_what_the_floor_of_an_image_forbids_is_not_given_back_and_the_report_says_so(
    tmp_path: Path, stage: SystemStage
) -> None:
    devices = stage.populate(tmp_path, 10, floors={"1.1.0": "1.1.0"}, offered=("1.0.0", "1.1.0"))
    made = stage.desk.create(stage.system_plan("5, rest"))
    stage.turn()
    assert stage.versions()["1.1.0"] == 5
    stage.desk.act(made.id, "abort", reason="on second thoughts")
    stage.deliver()
    assert stage.versions()["1.1.0"] == 5
    report = stage.desk.report(made.id)
    assert (report.returned, report.recovered) == (5, 0)
    told = [decode(device.report(), Twin).updates[-1] for device in devices if device.version == "1.1.0"]
    assert {(one.phase, one.code) for one in told} == {("refused", "floor")}
