"""A real board on a bench: the same roles as the virtual one has, played by what labgrid can switch.

Nothing here is bound to a brand: each role names a driver of the environment file, of any kind that has the protocol.
"""

import shutil
from pathlib import Path
from typing import Any, ClassVar

import attr
import serial
from labgrid.driver import Driver
from labgrid.factory import target_factory

from hil.loopback.children import RigError
from hil.rig.disk import corrupt
from hil.rig.protocols import LinkProtocol, PlugProtocol, Role, Scene, StorageProtocol


@target_factory.reg_driver
@attr.s(eq=False)
class BenchPlugDriver(Driver, PlugProtocol):
    """Plugs by switching the power of USB ports.

    Args:
        ports: for each of accelerator, camera and sensor, the name of a driver with PowerProtocol for its port, e.g. a
            USBPowerDriver (uhubctl). A role without one is always plugged.
        stick: name of a USBSDMuxDriver or another with `set_mode`, whose stick is the image's; and of the driver with
            `write_image` for the same stick, as {mux: …, storage: …}.
        lamp: name of a driver with DigitalOutputProtocol: a lamp that the camera sees.
        line: the serial port of this machine that leads to the board's sensor input.
        baudrate: of that line.
    """

    bindings: ClassVar[dict[str, Any]] = {}
    ports: dict[str, str] = attr.ib(factory=dict)
    stick: dict[str, str] | None = attr.ib(default=None)
    lamp: str | None = attr.ib(default=None)
    line: str | None = attr.ib(default=None)
    baudrate: int = attr.ib(default=115200)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._line: serial.Serial | None = None

    def on_deactivate(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    @Driver.check_active
    def plug(self, role: Role, image: Path | None = None) -> None:
        if role == "stick":
            if self.stick is None or image is None:
                raise RigError("this rig has no stick: give BenchPlugDriver `stick: {mux: NAME, storage: NAME}`")
            mux = self.target.get_driver("USBSDMuxDriver", name=self.stick["mux"])
            mux.set_mode("host")
            self.target.get_driver("USBStorageDriver", name=self.stick["storage"]).write_image(str(image))
            mux.set_mode("dut")
        elif role in self.ports:
            self.target.get_driver("PowerProtocol", name=self.ports[role]).on()

    @Driver.check_active
    def unplug(self, role: Role) -> None:
        if role == "stick":
            if self.stick is not None:
                self.target.get_driver("USBSDMuxDriver", name=self.stick["mux"]).set_mode("host")
        elif role in self.ports:
            self.target.get_driver("PowerProtocol", name=self.ports[role]).off()
        else:
            raise RigError(f"this rig cannot unplug the {role}: give BenchPlugDriver `ports: {{{role}: NAME}}`")

    @Driver.check_active
    def show(self, scene: Scene) -> None:
        # Without a lamp the picture stays as it is; tests that need it ask for the feature `camera-scene`.
        if self.lamp is not None:
            self.target.get_driver("DigitalOutputProtocol", name=self.lamp).set(scene == "bright")

    @Driver.check_active
    def feed(self, line: bytes) -> None:
        if self.line is None:
            return
        if self._line is None:
            self._line = serial.Serial(self.line, self.baudrate, write_timeout=1.0)
        self._line.write(line + b"\n")


@target_factory.reg_driver
@attr.s(eq=False)
class BenchLinkDriver(Driver, LinkProtocol):
    """Pulls the network cable by a relay in it, or by the port of a switch.

    Args:
        output: name of a driver with DigitalOutputProtocol; true is a link.
    """

    bindings: ClassVar[dict[str, Any]] = {}
    output: str = attr.ib()

    @Driver.check_active
    def pull(self) -> None:
        self.target.get_driver("DigitalOutputProtocol", name=self.output).set(False)

    @Driver.check_active
    def put_back(self) -> None:
        self.target.get_driver("DigitalOutputProtocol", name=self.output).set(True)


@target_factory.reg_driver
@attr.s(eq=False)
class BenchStorageDriver(Driver, StorageProtocol):
    """Gets at the board's card through a multiplexer.

    Args:
        mux: name of the driver with `set_mode("host" | "dut")`.
        storage: name of the driver with `write_image` for the same card.
        image: name of the disk image in the environment's `images`.
    """

    bindings: ClassVar[dict[str, Any]] = {}
    mux: str = attr.ib()
    storage: str = attr.ib()
    image: str = attr.ib(default="disk")

    @Driver.check_active
    def flash(self) -> None:
        storage = self._at_host()
        storage.write_image(self.target.env.config.get_image_path(self.image))
        self._back()

    @Driver.check_active
    def corrupt(self, partition: str, *, near: bytes | None = None, from_end: int | None = None) -> int:
        offset = corrupt(self._device(), partition, near=near, from_end=from_end)
        self._back()
        return offset

    @Driver.check_active
    def raw(self, target: Path) -> Path:
        with self._device().open("rb") as card, target.open("wb") as out:
            shutil.copyfileobj(card, out, 4 << 20)
        self._back()
        return target

    def _device(self) -> Path:
        return Path(str(self._at_host().storage.path))

    def _at_host(self) -> Any:
        self.target.get_driver("USBSDMuxDriver", name=self.mux).set_mode("host")
        return self.target.get_driver("USBStorageDriver", name=self.storage)

    def _back(self) -> None:
        self.target.get_driver("USBSDMuxDriver", name=self.mux).set_mode("dut")
