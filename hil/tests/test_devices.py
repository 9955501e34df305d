"""What is plugged in is named, watched and used; what is pulled out, hangs or fails costs nobody else anything."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import yaml

from gateway.wire.manifest import Classification, Plain, WindowInput
from hil.rig import accelerator, i2c, media, models
from hil.rig.accelerator import Accelerator
from hil.rig.device import GATEWAY
from hil.rig.diskfaults import recover, writes_fail
from hil.rig.protocols import Role
from hil.rig.qmp import QmpError
from hil.rig.rig import Rig
from hil.rig.sensor import RATE_HZ
from tests.gateway.inference.graphs import custom, dense
from tests.gateway.inference.manifests import write_release

pytestmark = [pytest.mark.hil, pytest.mark.timeout(3600)]

CONFIG: Final = "/data/etc-sluice/gateway.yaml"
KINDS: Final[dict[Role, tuple[str, str]]] = {
    "camera": ("camera-", "video"),
    "sensor": ("serial-", "dialout"),
    "accelerator": ("accelerator", "plugdev"),
}
PIPELINES: Final[dict[Role, str]] = {"camera": "light", "sensor": "temperature"}
SOON: Final = 240.0
"""Seconds. On a board all this takes one or two; an emulated processor that others share needs its time."""
a_role = pytest.mark.parametrize("role", [pytest.param(role, marks=pytest.mark.lg_feature(role)) for role in KINDS])
a_watched_role = pytest.mark.parametrize(
    "role", [pytest.param(role, marks=pytest.mark.lg_feature(role)) for role in PIPELINES]
)


def names(rig: Rig) -> set[str]:
    """Return the lasting names that there are now."""
    rig.device.run("udevadm settle")
    return set(rig.device.attempt("ls /dev/sluice")[0].split())


def unit_state(rig: Rig, name: str) -> str:
    return rig.device.run(
        f"systemctl show -P ActiveState \"$(systemd-escape --path --suffix=device '/dev/sluice/{name}')\""
    )


def events(rig: Rig, name: str) -> list[dict[str, Any]]:
    """Return what the gateway's log says of an event since the device has booted."""
    text = rig.device.run(f'journalctl -b -q -o cat -u gateway.service | grep -F \'"event": "{name}"\' || true')
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def since(rig: Rig, before: dict[str, int], name: str) -> int:
    return len(events(rig, name)) - before[name]


def is_answered(rig: Rig, name: str, backend: str = "litert-cpu") -> bool:
    """Tell whether a pipeline answers samples on a backend, now."""
    first = rig.device.pipelines().get(name, {})
    if (first.get("state"), first.get("backend")) != ("running", backend):
        return False
    second = rig.device.pipelines().get(name, {})
    return second.get("backend") == backend and second.get("inferences", 0) > first["inferences"]


def goes_on(rig: Rig, name: str, backend: str = "litert-cpu", *, seconds: float = SOON) -> None:
    """Wait until a pipeline answers samples on a backend."""
    rig.until(lambda: is_answered(rig, name, backend), f"{name} answers by {backend}", seconds=seconds)


def also(rig: Rig, *, sources: dict[str, Any], pipelines: dict[str, Any]) -> None:
    """Let the gateway watch more than it was claimed for."""
    rig.changed()
    config = yaml.safe_load(rig.device.run(f"cat {CONFIG}"))
    config.setdefault("sources", {}).update(sources)
    config.setdefault("pipelines", {}).update(pipelines)
    rig.device.run("systemctl stop gateway.service", seconds=180.0)
    # Over what is there, so that owner and rights stay.
    rig.device.put(yaml.safe_dump(config, sort_keys=False).encode(), "/run/rig-gateway.yaml")
    rig.device.run(f"cat /run/rig-gateway.yaml >{CONFIG} && sync")


def start_gateway(rig: Rig) -> None:
    rig.device.run("systemctl start --no-block gateway.service")
    rig.device.eventually("systemctl is-active -q gateway.service", "the gateway runs", seconds=600.0)


# ---- names, rights, units ------------------------------------------------------------------------------


@a_role
def test_what_is_plugged_in_has_a_lasting_name_its_group_and_a_unit_until_it_is_pulled_out(
    rig: Rig, role: Role
) -> None:
    rig.reach("running")
    prefix, group = KINDS[role]
    rig.unplug(role)
    before = names(rig)
    rig.plug(role)
    came = {name for name in names(rig) - before if name.startswith(prefix)}
    assert came
    for name in came:
        assert rig.device.run(f"stat -Lc '%G %a' '/dev/sluice/{name}'") == f"{group} 660"
        assert unit_state(rig, name) == "active"
    rig.unplug(role)
    assert names(rig) == before
    assert {unit_state(rig, name) for name in came} == {"inactive"}
    rig.plug(role)
    assert came <= names(rig), "the name lasts"


@pytest.mark.lg_feature("tpm")
def test_the_tpm_is_for_its_group_and_the_watchdog_for_root_alone(rig: Rig) -> None:
    rig.reach("running")
    assert rig.device.run("stat -c '%G %a' /dev/tpmrm0") == "tss 660"
    assert rig.device.run("stat -c '%U %a' /dev/watchdog0") == "root 600"


# ---- pipelines follow ----------------------------------------------------------------------------------


@a_watched_role
def test_a_pipeline_waits_for_a_device_that_was_pulled_out_and_goes_on_when_it_is_back(rig: Rig, role: Role) -> None:
    rig.reach("running")
    name = PIPELINES[role]
    (other,) = set(PIPELINES.values()) - {name}
    before = {kind: len(events(rig, kind)) for kind in ("device_left", "device_came")}
    rig.unplug(role)
    rig.until(
        lambda: rig.device.pipelines().get(name, {}).get("waits_for") == "device", "it waits for it", seconds=SOON
    )
    assert is_answered(rig, other)
    rig.plug(role)
    goes_on(rig, name)
    assert since(rig, before, "device_left") == since(rig, before, "device_came") == 1
    assert events(rig, "hotplug_by_looking_only") == [], "udev's messages arrive within the unit's sandbox"


@pytest.mark.lg_feature(["sensor", "virtual"])
@pytest.mark.parametrize("protected", [True, False], ids=["with the drop-in", "without it"])
def test_the_first_device_of_its_kind_can_be_opened_although_it_came_after_the_gateway(
    rig: Rig, *, protected: bool
) -> None:
    """A unit may open the kinds of devices that the kernel knows when it starts: their drivers are loaded before."""
    rig.reach("running")
    rig.unplug("sensor")
    rig.device.run("systemctl stop gateway.service", seconds=180.0)
    rig.device.run("udevadm settle; modprobe -r cdc_acm")
    assert rig.device.attempt("grep -w ttyACM /proc/devices")[2] != 0
    if not protected:
        rig.device.run(
            "mkdir -p /run/systemd/system/gateway.service.d && "
            "ln -sf /dev/null /run/systemd/system/gateway.service.d/50-sluice-devices.conf && systemctl daemon-reload"
        )
    start_gateway(rig)
    rig.until(lambda: "temperature" in rig.device.pipelines(), "it says how it is", seconds=SOON)
    rig.plug("sensor")
    if protected:
        goes_on(rig, "temperature")
    else:
        rig.device.eventually(
            "journalctl -b -q -o cat -u gateway.service | grep -q 'not permitted'", "nobody may open it", seconds=SOON
        )
        assert not is_answered(rig, "temperature")


# ---- an accelerator ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return accelerator.build(tmp_path_factory.mktemp("accelerator"))


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    """A model for both kinds of processor, and one for the accelerator alone."""
    window = WindowInput(samples=4, hop_samples=4, rate_hz=1, features=Plain())
    labels = Classification(labels=("a", "b", "c", "d"))
    plain = dense(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))
    compiled = custom("edgetpu-custom-op")
    write_release(tmp_path, {"edgetpu": compiled, "cpu-float": plain}, window, labels, name="rig-both")
    write_release(tmp_path, {"edgetpu": compiled}, window, labels, name="rig-compiled")
    return tmp_path


@pytest.mark.lg_feature(["accelerator", "virtual"])
def test_pipelines_follow_an_accelerator_that_comes_hangs_is_reset_and_goes(
    rig: Rig, library: Path, releases: Path
) -> None:
    rig.reach("running")
    stand_in = Accelerator(rig)
    file = "/data/rig-models/values.csv"
    values = {"type": "replay", "file": file, "rate_hz": 1, "speed": 8, "loop": True}
    also(
        rig,
        sources={"values": values},
        pipelines={
            "any": {"source": "values", "model": "rig-both", "backend": "auto"},
            "strict": {"source": "values", "model": "rig-compiled", "backend": "edgetpu"},
        },
    )
    rig.device.put("".join(f"{line}\n" for line in ("v", *(at % 5 for at in range(400)))).encode(), file)
    for part in releases.glob("*/*/*"):
        rig.device.put(part.read_bytes(), f"/data/rig-models/{part.relative_to(releases)}")
    rig.device.run("chmod -R a+rX /data/rig-models")
    stand_in.install(library)
    start_gateway(rig)
    goes_on(rig, "any")  # makes do with the processor
    assert rig.device.pipelines()["strict"]["waits_for"] == "accelerator"

    stand_in.plug()
    for name in ("strict", "any"):
        goes_on(rig, name, "edgetpu")
    assert events(rig, "pipeline_moved")
    (told,) = [each for each in doctor(rig) if each["check"].startswith("accelerator ")]
    assert told["verdict"] == "warning"
    assert "480 Mbit/s" in told["found"], "the bus of the board is one of USB 2"
    assert "USB 3" in told["remedy"]

    stand_in.hang()
    rig.until(lambda: not is_answered(rig, "strict", "edgetpu"), "it hangs", seconds=SOON)
    assert is_answered(rig, "temperature"), "and nothing else does"
    stand_in.reset()
    for name in ("strict", "any"):
        goes_on(rig, name, "edgetpu")
    assert "reset" in json.dumps(events(rig, "pipeline_lost_accelerator") + events(rig, "pipeline_abandoned"))

    stand_in.unplug()
    goes_on(rig, "any")
    rig.until(lambda: rig.device.pipelines()["strict"].get("waits_for") == "accelerator", "it waits", seconds=SOON)
    assert rig.device.run("systemctl show -P NRestarts gateway.service") == "0"


# ---- the doctor ----------------------------------------------------------------------------------------


def doctor(rig: Rig) -> list[dict[str, Any]]:
    """Ask `gateway doctor` as the service's user; returns its checks."""
    command = f"runuser -u sluice -- {GATEWAY} doctor --config {CONFIG} --json"
    text, _, code = rig.device.attempt(command, seconds=300.0)
    assert code in (0, 1)
    checks: list[dict[str, Any]] = json.loads(text)["checks"]
    return checks


@pytest.mark.lg_feature(["camera", "sensor"])
def test_the_doctor_finds_the_devices_well_and_says_what_is_missing(rig: Rig) -> None:
    rig.reach("running")
    well = {each["check"]: each for each in doctor(rig)}
    sources = rig.site.sources
    for name, source in sources.items():
        found = next(told for check, told in well.items() if name in check)
        assert found["verdict"] in ("ok", "warning"), found
        assert source["device"] in json.dumps(found)
    rig.unplug("sensor")
    (missing,) = [each for each in doctor(rig) if "boiler" in each["check"]]
    assert missing["verdict"] == "failed"
    assert missing["remedy"]


# ---- a sensor on the board -----------------------------------------------------------------------------


@pytest.fixture
def chips(rig: Rig) -> Iterator[None]:
    rig.reach("running")
    rig.changed()
    rig.device.run(i2c.PLUG, seconds=SOON)
    yield
    rig.device.attempt(i2c.UNPLUG)


@pytest.mark.lg_feature("i2c-stub")
@pytest.mark.usefixtures("chips")
def test_a_sensor_on_the_boards_bus_is_read_by_a_pipeline(rig: Rig) -> None:
    name = rig.device.run(i2c.IIO_NAME)
    assert rig.device.run(i2c.IIO_KIND) == "iio", "its rule has seen it"
    also(
        rig,
        sources={"board": {"type": "iio", "device": name, "channels": [i2c.CHANNEL], "rate_hz": RATE_HZ}},
        pipelines={
            "board": {**rig.site.pipelines["temperature"], "source": "board"},
        },
    )
    start_gateway(rig)
    goes_on(rig, "board")
    rig.device.run(i2c.tell_temperature(60.0))
    assert rig.device.run(i2c.HWMON_LM75) == "60000"
    assert rig.event("board", "anomaly", seconds=300.0)["source"] == "board"


# ---- a stick -------------------------------------------------------------------------------------------


@pytest.mark.lg_feature("stick")
def test_a_bundle_on_the_stick_that_had_the_claim_is_looked_at_once_the_claim_was_taken(
    rig: Rig, tmp_path: Path
) -> None:
    rig.reach("booted")
    rig.changed()
    mounted = "ls /run/media/*/update.raucb"
    rig.plug("stick", media.fat_stick(tmp_path / "stick.img", {"update.raucb": b"none"}))
    rig.device.eventually(
        "test $(systemctl show -P ConditionTimestampMonotonic sluice-medium@sda.service) != 0",
        "the stick is there",
        seconds=120.0,
    )
    assert rig.device.attempt(mounted)[2] != 0, "nobody has claimed the device"
    # What a claim ends with; the claim itself has a test of its own.
    rig.device.run(f"touch {CONFIG} && systemctl stop sluice-provision.service", seconds=180.0)
    rig.device.eventually(mounted, "the stick is looked at", seconds=120.0)


# ---- a link that is slow, a cable that is out ----------------------------------------------------------


@pytest.mark.lg_feature(["camera", "camera-scene"])
def test_what_the_camera_sees_arrives_over_a_link_that_is_slow_and_late(rig: Rig) -> None:
    rig.reach("running")
    rig.slow_cloud(4_000.0, delay_seconds=0.5)
    rig.show("bright")
    assert rig.event("light", models.LABEL, seconds=600.0)["gateway"] == rig.gateway


@pytest.mark.lg_feature(["link-cut", "camera", "camera-scene"])
def test_a_device_whose_cable_is_out_goes_on_and_tells_when_it_is_back(rig: Rig) -> None:
    rig.reach("running")
    rig.changed()
    rig.pull_cable()
    try:
        rig.show("bright")
        rig.until(
            lambda: rig.device.pipelines().get("light", {}).get("open_events", 0) > 0,
            "the device sees it",
            seconds=SOON,
        )
        assert not rig.cloud.events(rig.gateway, "light")
    finally:
        rig.put_cable_back()
    rig.event("light", models.LABEL, seconds=600.0)


# ---- a disk that fails ---------------------------------------------------------------------------------


@pytest.mark.lg_feature(["virtual", "camera", "camera-scene", "sensor"])
def test_a_disk_that_takes_nothing_any_more_is_told_by_a_gateway_that_still_runs(rig: Rig) -> None:
    rig.reach("running")
    rig.changed()
    assert not failed_outbox(rig)
    writes_fail(rig.machine)
    rig.show("bright")  # there is something to store
    rig.until(lambda: failed_outbox(rig), "the gateway says that its disk fails", seconds=2 * SOON)
    assert {name: told["state"] for name, told in rig.device.pipelines().items()} == dict.fromkeys(
        PIPELINES.values(), "running"
    )
    assert rig.device.run("systemctl show -P NRestarts gateway.service") == "0"


@pytest.mark.lg_feature("virtual")
@pytest.mark.parametrize("protected", [True, False], ids=["with the unit", "without it"])
def test_a_device_whose_disk_keeps_the_gateway_from_running_is_started_again_and_runs_when_the_disk_does(
    rig: Rig, *, protected: bool
) -> None:
    rig.reach("running")
    rig.changed()
    before = rig.device.boot_id()
    # The limits of a rig: fewer starts, and no half an hour of waiting. All of it is gone with the restart.
    units = "/run/systemd/system"
    rig.device.put(b"[Unit]\nStartLimitBurst=2\n", f"{units}/gateway.service.d/90-rig.conf", mode="644")
    rig.device.put(
        b"[Service]\nEnvironment=SLUICE_STUCK_SECONDS=0\n", f"{units}/sluice-stuck.service.d/90-rig.conf", mode="644"
    )
    if not protected:
        rig.device.run(f"ln -s /dev/null {units}/sluice-stuck.service")
    rig.device.run("systemctl daemon-reload")
    writes_fail(rig.machine)
    rig.device.eventually(
        "systemctl kill --signal=KILL gateway.service; sleep 2; systemctl is-failed -q gateway.service",
        "the gateway is left down",
        seconds=600.0,
    )
    if not protected:
        with pytest.raises(QmpError, match="RESET"):
            rig.machine.qmp.wait_for("RESET", seconds=120.0)
        assert rig.device.boot_id() == before
        return
    rig.machine.qmp.wait_for("RESET", seconds=600.0)
    recover(rig.machine)  # as a controller does that a reset has brought back
    rig.rebooted_since(before)
    for name in PIPELINES.values():
        goes_on(rig, name, seconds=900.0)


@pytest.mark.lg_feature("disk-encryption")
def test_a_device_whose_outbox_cannot_be_opened_stays_up_records_nowhere_else_and_runs_again_once_it_is_mended(
    rig: Rig,
) -> None:
    rig.reach("running")
    rig.changed()
    partition, kept = "/dev/disk/by-partlabel/outbox", "/data/rig-header"
    # As flash that was worn out would leave it: both copies of the header are gone.
    rig.device.run(f"dd if={partition} of={kept} bs=1M count=16 conv=fsync")
    rig.device.run(f"dd if=/dev/zero of={partition} bs=1M count=16 conv=fsync && sync")
    rig.reboot()
    rig.device.eventually("systemctl is-active -q sluice-stuck.service", "it says so, and waits", seconds=600.0)
    assert "cannot be mounted" in rig.device.run("journalctl -b -q -o cat -u sluice-stuck.service")
    assert rig.device.attempt("systemctl is-active gateway.service")[0] != "active"
    assert rig.device.attempt("mountpoint -q /data/outbox")[2] != 0
    assert rig.device.run("ls -A /data/outbox") == "", "nothing is recorded where the mount would hide it later"
    rig.device.run(f"dd if={kept} of={partition} bs=1M conv=fsync && udevadm settle")
    rig.device.run("systemctl start --no-block gateway.service")
    rig.device.eventually("systemctl is-active -q gateway.service", "the gateway runs", seconds=600.0)
    rig.device.run("mountpoint -q /data/outbox")
    for name in PIPELINES.values():
        goes_on(rig, name, seconds=900.0)


def failed_outbox(rig: Rig) -> bool:
    told: dict[str, Any] = rig.device.status().get("outbox", {})
    return told.get("state") == "failed"
