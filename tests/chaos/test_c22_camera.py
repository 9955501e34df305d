"""C22: a camera that is unplugged, freezes, sends garbage or nothing, or changes its size, on a whole gateway."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hil.loopback.children import RigError
from hil.loopback.rig import eventually
from tests.chaos.appliance import Appliance, appliances
from tests.chaos.experiment import Experiment
from tests.e2e.releases import BRIGHT
from tests.simulators.camera import Knobs, MjpegCamera

RECONNECT_SECONDS = 10.0
FROZEN_AFTER_SECONDS = 2.0
QUIET_SECONDS = 1.5

Fault = Callable[[MjpegCamera], None]


def unplug(camera: MjpegCamera) -> None:
    camera.unplug()


def freeze(camera: MjpegCamera) -> None:
    camera.knobs.frozen = True


def garble(camera: MjpegCamera) -> None:
    camera.knobs.garbage = b"\xff\xd8" + b"this is no picture" * 50


def fall_silent(camera: MjpegCamera) -> None:
    camera.knobs.silent = True


def cut(camera: MjpegCamera) -> None:
    camera.knobs.garbage = b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(40)


@contextmanager
def watched(experiment: Experiment, camera: MjpegCamera, **source: Any) -> Iterator[Appliance]:
    """Run a gateway with the camera beside a motor."""
    site = Appliance(experiment.directory / "site", [])
    settings = site.rig.gateway_settings
    settings["sources"]["gate"] = {
        "type": "camera",
        "device": camera.url,
        "timeout_seconds": 1.0,
        "frozen_after_seconds": FROZEN_AFTER_SECONDS,
        **source,
    }
    settings["pipelines"]["gate"] = {
        "source": "gate",
        "model": BRIGHT,
        "rules": [{"name": "light", "min_score": 0.1, "update_seconds": 0.2}],
        "interest": {"measure_every_seconds": 0.5},
    }
    site.rig.write()
    with appliances(site):
        site.start()
        eventually(lambda: pipeline(site, "gate")["inferences"] > 5, "the camera is looked at")
        yield site


def pipeline(site: Appliance, name: str) -> dict[str, Any]:
    """Return the status of a pipeline."""
    found: dict[str, Any] = next(each for each in site.status()["pipelines"] if each["pipeline"] == name)
    return found


def is_well(site: Appliance) -> bool:
    gate = pipeline(site, "gate")
    return (gate["state"], gate["source_state"]) == ("running", "streaming")


@pytest.mark.parametrize("faults", [[unplug, freeze, garble, fall_silent, cut]], ids=["one-after-the-other"])
def test_c22_a_camera_that_fails_is_told_stops_its_own_pipeline_alone_and_comes_back(
    experiment: Experiment, faults: list[Fault]
) -> None:
    camera = MjpegCamera()
    try:
        with watched(experiment, camera) as site, site.answering("motor"):
            for fault in faults * experiment.scaled(1, 20):
                fault(camera)
                eventually(lambda: not is_well(site), f"{fault.__name__} is told")
                told = pipeline(site, "gate")
                assert told["last_error"] or told["source_state"] in ("lost", "frozen"), told
                eventually(lambda: stands_still(site), f"{fault.__name__}: nothing stale is inferred")
                assert pipeline(site, "motor")["state"] == "running"
                state = told["source_state"]
                if state != "streaming":
                    eventually(
                        lambda state=state: site.metric("source_state", pipeline="gate", source_state=state) == 1,  # type: ignore[misc]
                        "the metric says so",
                    )
                began = time.monotonic()
                mend(camera)
                eventually(lambda: is_well(site), f"it is back after {fault.__name__}", RECONNECT_SECONDS)
                experiment.log("survived", fault=fault.__name__, told=told, seconds=time.monotonic() - began)
                count = pipeline(site, "gate")["inferences"]
                eventually(lambda count=count: pipeline(site, "gate")["inferences"] > count, "it is looked at again")  # type: ignore[misc]
            site.is_quiet()
    finally:
        camera.unplug()


def stands_still(site: Appliance) -> bool:
    """Tell whether no inference is made for a while: what is not fresh must not look as if it were."""
    before = pipeline(site, "gate")["inferences"]
    time.sleep(QUIET_SECONDS)
    return bool(pipeline(site, "gate")["inferences"] == before)


def mend(camera: MjpegCamera) -> None:
    """Let everything be well again; plugging in what is plugged in changes nothing."""
    well = Knobs()
    for name in ("frozen", "silent", "garbage"):
        setattr(camera.knobs, name, getattr(well, name))
    if camera._server is None:
        camera.plug()


def test_c22_a_camera_that_switches_to_4k_goes_on_in_bounded_memory(experiment: Experiment) -> None:
    camera = MjpegCamera(fps=5.0)
    try:
        with watched(experiment, camera) as site:
            camera.knobs.width, camera.knobs.height = 3840, 2160
            before = pipeline(site, "gate")["inferences"]
            eventually(lambda: pipeline(site, "gate")["inferences"] > before + 5, "4k pictures are looked at")
            assert is_well(site)
            assert site.footprint().rss_bytes < 1_000_000_000
            camera.knobs.width, camera.knobs.height = 320, 240
            before = pipeline(site, "gate")["inferences"]
            eventually(lambda: pipeline(site, "gate")["inferences"] > before + 5, "so are small ones again")
            site.is_quiet()
    finally:
        camera.unplug()


def test_c22_the_control_without_the_check_takes_a_frozen_picture_for_a_fresh_one(experiment: Experiment) -> None:
    camera = MjpegCamera()
    try:
        with watched(experiment, camera, frozen_after_seconds=1e6) as site:
            freeze(camera)
            time.sleep(2 * FROZEN_AFTER_SECONDS)
            assert is_well(site), "nothing is told"
            with pytest.raises(RigError):
                eventually(lambda: not is_well(site), "it is told", 2.0)
    finally:
        camera.unplug()
