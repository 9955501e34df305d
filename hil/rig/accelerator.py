"""An accelerator that is nothing but a place on the bus, and a library that stands in for its driver's.

On a virtual board the gadget of `hil.rig.guest` has the ids of a Coral USB and computes nothing; the stand-in library
(`tests/simulators/edgetpu_standin.c`) says so in its version. What the gateway sees is real: udev, sysfs, a library
that lists devices, opens one, hangs with it, and answers no more when it was away.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Final

from hil.loopback.children import RigError
from hil.rig import guest
from hil.rig.device import Device
from hil.rig.rig import Rig

_SOURCE: Final = Path(__file__).parents[2] / "tests" / "simulators" / "edgetpu_standin.c"
_FOLDER: Final = "/run/rig-accelerator"  # the only place of the appliance where root may write what can be executed
_TOLD: Final = f"{_FOLDER}/devices"
_DROP_IN: Final = "/run/systemd/system/gateway.service.d/90-rig-accelerator.conf"
LIBRARY: Final = "libedgetpu.so.1"


def build(folder: Path) -> Path:
    """Compile the library for this machine's kind of processor; returns it.

    Raises:
        RigError: there is no C compiler.
    """
    if shutil.which("cc") is None:
        raise RigError("the stand-in for the accelerator's library needs a C compiler: apt-get install gcc libc6-dev")
    target = folder / LIBRARY
    command = ["cc", "-shared", "-fPIC", "-O1", "-s", "-o", str(target), str(_SOURCE)]
    subprocess.run(command, check=True, capture_output=True)
    return target


class Accelerator:
    """The accelerator of a virtual board: its place on the bus, and what the library says of it."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._opened = 0

    @property
    def _device(self) -> Device:
        return self._rig.device

    def install(self, library: Path) -> None:
        """Give the gateway the library, from its next start on; no accelerator is plugged in."""
        self._rig.changed()
        environment = f"Environment=LD_LIBRARY_PATH={_FOLDER} STANDIN_DEVICES_FILE={_TOLD}"
        self._device.put(library.read_bytes(), f"{_FOLDER}/{LIBRARY}", mode="755")
        self._device.put(f"[Service]\n{environment}\n".encode(), _DROP_IN, mode="644")
        self._device.run(f"chmod 755 {_FOLDER} && systemctl daemon-reload")
        self._say("")

    def plug(self) -> None:
        """Plug it in; its firmware is loaded at once. It knows nothing of who had it open before."""
        self._opened += 1
        self._say(f"usb {self._opened}")
        self._rig.plug("accelerator")
        self._device.run(guest.LOAD_FIRMWARE)

    def unplug(self) -> None:
        """Pull it out."""
        self._say("")
        self._rig.unplug("accelerator")

    def hang(self) -> None:
        """Let it answer nothing any more, as a device does whose firmware has crashed."""
        self._say(f"usb {self._opened} hang")

    def reset(self) -> None:
        """Let it leave the bus and come back, which is all that helps then."""
        self._opened += 1
        self._say(f"usb {self._opened}")
        self._device.run(guest.LOAD_FIRMWARE)

    def _say(self, text: str) -> None:
        self._device.run(f"printf %s '{text}' >{_TOLD}.new && chmod 644 {_TOLD}.new && mv {_TOLD}.new {_TOLD}")
