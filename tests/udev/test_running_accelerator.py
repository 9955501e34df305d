"""A gateway that runs, and an accelerator that is plugged in, pulled out and reset.

/sys is a tree of recordings in a mount namespace, the library a stand-in that computes nothing: it is real in when it
lists a device, and in answering no more when the device was away.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.control import SOCKET_NAME, ask
from gateway.errors import ControlError
from gateway.wire.manifest import Classification, Plain, WindowInput
from tests.gateway.inference.graphs import custom, dense
from tests.gateway.inference.manifests import write_release
from tests.simulators.sysfs import SysfsTree
from tests.simulators.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]
STANDIN = REPOSITORY / "tests" / "simulators" / "edgetpu_standin.c"
FLAGS = ["--mount", "--net", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
NAMESPACES = subprocess.run(["unshare", *FLAGS, "true"], capture_output=True, check=False).returncode == 0
CORAL = "coral-usb"

pytestmark = [
    pytest.mark.skipif(not NAMESPACES, reason="needs mount and network namespaces, for a /sys and an udev of its own"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stand-in (Debian: gcc)"),
]

CONFIG = """
gateway: {{id: plugged, state_directory: "{root}/state"}}
vault: {{level: software}}
metrics: {{enabled: false}}
log: {{level: debug}}
models: {{directories: ["{root}/models"]}}
sources:
  values: {{type: replay, file: "{root}/values.csv", rate_hz: 1, speed: 40, loop: true}}
pipelines:
  any: {{source: values, model: both, backend: auto}}
  strict: {{source: values, model: compiled, backend: edgetpu}}
"""


class Machine:
    """A gateway with an accelerator that may be there."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tree = SysfsTree(root / "tree").plug("usb-keyboard")
        self._devices = root / "devices"
        self._opened = 0
        self._devices.write_text("")
        (root / "values.csv").write_text("v\n" + "".join(f"{at % 5}\n" for at in range(400)))
        four = WindowInput(samples=4, hop_samples=4, rate_hz=1, features=Plain())
        labels = Classification(labels=("a", "b", "c", "d"))
        plain = dense(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))
        compiled = custom("edgetpu-custom-op")
        write_release(root / "models", {"edgetpu": compiled, "cpu-float": plain}, four, labels, name="both")
        write_release(root / "models", {"edgetpu": compiled}, four, labels, name="compiled")
        library = root / "lib" / "libedgetpu.so.1"
        library.parent.mkdir()
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(STANDIN)], check=True)
        (root / "gateway.yaml").write_text(CONFIG.format(root=root))
        inside = ["sh", "-c", f'mount --bind "{root}/tree/sys" /sys && exec "$@"', "sh"]
        gateway = [sys.executable, "-m", "gateway", "run", "--config", str(root / "gateway.yaml")]
        with (root / "log").open("w") as log:
            self._process = subprocess.Popen(
                ["unshare", *FLAGS, *inside, sys.executable, "-m", "tests.udev.uevent_mouth", *gateway],
                stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, cwd=REPOSITORY,
                env=os.environ | {"LD_LIBRARY_PATH": str(library.parent), "STANDIN_DEVICES_FILE": str(self._devices)},
            )  # fmt: skip

    def plug(self) -> None:
        """Have the accelerator appear, as one that knows nothing of who had it open before."""
        self._opened += 1
        self._devices.write_text(f"usb {self._opened}")
        self._tree.plug(CORAL)
        self._say("add")

    def unplug(self) -> None:
        self._devices.write_text("")
        self._tree.unplug(CORAL)
        self._say("remove")

    def _say(self, action: str) -> None:
        assert self._process.stdin is not None
        words = {"ACTION": action, "SUBSYSTEM": "usb", "DEVNAME": "/dev/bus/usb/002/005"}
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def pipeline(self, name: str) -> dict[str, Any]:
        """Return what the gateway says of a pipeline; empty while it does not answer."""
        try:
            told = ask(self._root / "state" / SOCKET_NAME, "status")["pipelines"]
        except ControlError:
            return {}
        return dict(next(each for each in told if each["pipeline"] == name))

    def runs_on(self, name: str, backend: str) -> bool:
        """Tell whether a pipeline answers samples on a backend, now."""
        before = self.pipeline(name)
        if (before.get("state"), before.get("backend")) != ("running", backend):
            return False
        time.sleep(0.3)  # three windows long
        after = self.pipeline(name)
        return after.get("backend") == backend and after.get("inferences", 0) > before["inferences"]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of its log with this event."""
        lines = [json.loads(line) for line in (self._root / "log").read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def close(self) -> str:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(40)
        return (self._root / "log").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_pipelines_follow_an_accelerator_that_comes_goes_and_is_reset(machine: Machine) -> None:
    wait_for(lambda: machine.runs_on("any", "litert-cpu"), seconds=60, what="the pipeline on the CPU")
    assert machine.pipeline("strict")["waits_for"] == "accelerator"
    # It has failed often enough to be tried again only after seconds: what follows is no luck.
    wait_for(
        lambda: any(told["restart_in_seconds"] >= 8 for told in machine.events("component_failed_again")), seconds=30
    )

    machine.plug()
    wait_for(lambda: machine.runs_on("strict", "edgetpu"), seconds=5, what="the pipeline that asks for one")
    wait_for(lambda: machine.runs_on("any", "edgetpu"), seconds=5, what="the pipeline that made do with the CPU")
    assert len(machine.events("pipeline_moved")) == 1

    machine.unplug()
    wait_for(lambda: machine.pipeline("strict").get("waits_for") == "accelerator", seconds=10)
    wait_for(lambda: machine.runs_on("any", "litert-cpu"), seconds=10, what="the pipeline back on the CPU")
    assert "unplugged" in json.dumps(machine.events("pipeline_lost_accelerator"))

    machine.plug()
    wait_for(lambda: machine.runs_on("strict", "edgetpu") and machine.runs_on("any", "edgetpu"), seconds=10)

    machine.unplug()
    machine.plug()  # at once: a reset. Who had it open gets no answer any more
    wait_for(lambda: machine.runs_on("strict", "edgetpu") and machine.runs_on("any", "edgetpu"), seconds=15)
    assert [told["accelerator"] for told in machine.events("accelerator_came")][:2] == ["usb:2-1"] * 2
