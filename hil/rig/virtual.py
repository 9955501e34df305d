"""The virtual board as labgrid sees it: one resource, one driver for all that is done to it, one for commands."""

import select
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import attr
from labgrid.driver import Driver, ExecutionError
from labgrid.driver.consoleexpectmixin import ConsoleExpectMixin
from labgrid.factory import target_factory
from labgrid.protocol import CommandProtocol, ConsoleProtocol, FileTransferProtocol, PowerProtocol
from labgrid.resource import Resource
from pexpect import TIMEOUT

from hil.loopback.children import RigError
from hil.rig import agent, guest
from hil.rig.disk import corrupt
from hil.rig.machine import NIC, Board, Machine, boots
from hil.rig.notes import Notes, place
from hil.rig.protocols import LinkProtocol, PlugProtocol, Role, Scene, SnapshotProtocol, StorageProtocol
from hil.rig.sensor import SensorLine

BOOT_SECONDS: Final = 1800.0


@target_factory.reg_resource
@attr.s(eq=False)
class VirtualBoard(Resource):
    """A board made of processes of this machine.

    Args:
        image: name of the disk image in the environment's `images`.
        kind: amd64 or arm64.
        memory_mib, processors: of the board.
    """

    image: str = attr.ib()
    kind: str = attr.ib(default="amd64")
    memory_mib: int = attr.ib(default=2048)
    processors: int = attr.ib(default=2)


@target_factory.reg_driver
@attr.s(eq=False)
class VirtualBoardDriver(
    ConsoleExpectMixin,
    Driver,
    PowerProtocol,
    ConsoleProtocol,
    PlugProtocol,
    LinkProtocol,
    StorageProtocol,
    SnapshotProtocol,
):
    """Power, console, disk, plugs and snapshots of a virtual board."""

    bindings = {"board": VirtualBoard}  # noqa: RUF012 - labgrid's way to say it
    txdelay: float = attr.ib(default=0.0)
    txchunk: int = attr.ib(default=1)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._console: socket.socket | None = None
        self._sensor: SensorLine | None = None
        self._made: Machine | None = None
        self._plugged: set[str] = set()
        self._noted: Notes | None = None
        self.scratch: Path | None = None

    @property
    def notes(self) -> Notes:
        """What is noted of this board, for a session that goes on with it."""
        if self._noted is None:
            kept = place()
            file = None if kept is None else kept / self.target.name / "kept.json"
            self._noted = Notes(file, Path(self.target.env.config.get_image_path(self.board.image)))
        return self._noted

    @property
    def machine(self) -> Machine:
        """The machine, made when it is asked for first."""
        if self._made is None:
            # Where the state goes: given by whoever wants to keep it, or gone with the session.
            kept = place()
            directory = kept or Path(tempfile.mkdtemp(prefix="sluice-rig-"))
            self.scratch = None if kept else directory
            self._made = Machine(
                Board(
                    image=Path(self.target.env.config.get_image_path(self.board.image)),
                    directory=directory / self.target.name,
                    kind=self.board.kind,
                    memory_mib=self.board.memory_mib,
                    processors=self.board.processors,
                    serial=self.notes.serial,
                )
            )
        return self._made

    def on_deactivate(self) -> None:
        if self._made is not None:
            self._hang_up()
            self._made.close()
            if self.scratch is not None:
                shutil.rmtree(self.scratch, ignore_errors=True)
            # The next machine has other sockets, and nothing is plugged into it yet.
            self._made = self._sensor = None
            self._plugged.clear()

    # ---- power -------------------------------------------------------------------------------------

    @Driver.check_active
    def on(self) -> None:
        self.machine.power_on()

    @Driver.check_active
    def off(self) -> None:
        self._hang_up()
        self._plugged.discard("stick")  # the others are plugged again by the guest itself
        self.machine.cut_power()

    @Driver.check_active
    def cycle(self) -> None:
        self.off()
        self.on()

    # ---- console -----------------------------------------------------------------------------------

    def open(self) -> None:
        if self._console is None:
            self._console = socket.socket(socket.AF_UNIX)
            self._console.connect(str(self.machine.console_socket))

    def close(self) -> None:
        if self._console is not None:
            self._console.close()
            self._console = None

    def _read(self, size: int = 1, timeout: float = 0.0, max_size: int | None = None) -> bytes:
        self.open()
        assert self._console is not None
        ready, _, _ = select.select([self._console], [], [], timeout)
        if not ready:
            raise TIMEOUT(f"the console was silent for {timeout:.2f} s")
        return self._console.recv(max_size or max(size, 4096))

    def _write(self, data: bytes) -> int:
        self.open()
        assert self._console is not None
        self._console.sendall(data)
        return len(data)

    # ---- plugs -------------------------------------------------------------------------------------

    @Driver.check_active
    def plug(self, role: Role, image: Path | None = None) -> None:
        if role in self._plugged:
            return
        qmp = self.machine.qmp
        match role:
            case "stick":
                if image is None:
                    raise RigError("a stick is plugged with its image")
                file = {"driver": "file", "filename": str(image)}
                qmp.command("blockdev-add", driver="raw", node_name="stick", file=file)
                qmp.command("device_add", driver="usb-storage", id="stick", drive="stick", bus="usb.0", removable=True)
            case "sensor":
                self._plug_in_guest(role, guest.PLUG_SENSOR)
            case "camera":
                self._plug_in_guest(role, guest.PLUG_CAMERA)
            case "accelerator":
                self._plug_in_guest(role, guest.PLUG_ACCELERATOR)
        self._plugged.add(role)

    @Driver.check_active
    def unplug(self, role: Role) -> None:
        if role not in self._plugged:
            return
        qmp = self.machine.qmp
        match role:
            case "stick":
                qmp.command("device_del", id="stick")
                qmp.wait_for("DEVICE_DELETED", seconds=60.0)
                qmp.command("blockdev-del", node_name="stick")
            case "sensor":
                self._unplug_in_guest(role, guest.UNPLUG_SENSOR)
            case "camera":
                self._unplug_in_guest(role, guest.UNPLUG_CAMERA)
            case "accelerator":
                self._unplug_in_guest(role, guest.UNPLUG_ACCELERATOR)
        self._plugged.discard(role)

    @Driver.check_active
    def show(self, scene: Scene) -> None:
        self._in_guest(guest.show(scene))

    @Driver.check_active
    def feed(self, line: bytes) -> None:
        if self._sensor is None:
            self._sensor = SensorLine(self.machine.sockets / "sensor")
        self._sensor.say(line)

    # ---- network -----------------------------------------------------------------------------------

    @Driver.check_active
    def pull(self) -> None:
        self.machine.qmp.command("set_link", name=NIC, up=False)

    @Driver.check_active
    def put_back(self) -> None:
        self.machine.qmp.command("set_link", name=NIC, up=True)

    # ---- disk --------------------------------------------------------------------------------------

    @Driver.check_active
    def flash(self) -> None:
        self.off()
        self.notes.forget()
        self._plugged.clear()
        self.machine.flash()

    @Driver.check_active
    def corrupt(self, partition: str, *, near: bytes | None = None, from_end: int | None = None) -> int:
        raw = self.machine.raw_disk(self.machine.directory / "disk.raw")
        offset = corrupt(raw, partition, near=near, from_end=from_end)
        self.machine.replace_disk(raw)
        raw.unlink()
        return offset

    @Driver.check_active
    def raw(self, target: Path) -> Path:
        return self.machine.raw_disk(target)

    # ---- snapshots ---------------------------------------------------------------------------------

    @Driver.check_active
    def save(self, name: str) -> None:
        self.machine.save(name)
        self.notes.keep(name, frozenset(self._plugged))

    def kept(self) -> frozenset[str]:
        return frozenset(self.notes.states)

    @Driver.check_active
    def restore(self, name: str) -> None:
        self._hang_up()
        # In a new QEMU, which has the snapshot's devices: in one that has run for a while the guest's clock would leap
        # ahead by that while, and every watchdog in it would bite.
        self.machine.cut_power()
        self.machine.power_on()
        self.machine.restore(name)
        self._plugged = set(self.notes.states[name])
        # Its clock stands where it stood; a real device would ask for the time.
        self._in_guest(f"date -s @{time.time_ns() // 10**9}")

    def _plug_in_guest(self, role: Role, script: str) -> None:
        self._in_guest(script)
        self._in_guest(f"mkdir -p {agent.PLUGS}")
        self.machine.agent.put(script.encode(), f"{agent.PLUGS}/{role}.sh")

    def _unplug_in_guest(self, role: Role, script: str) -> None:
        self._in_guest(f"rm -f {agent.PLUGS}/{role}.sh")
        self._in_guest(script)

    def _in_guest(self, script: str) -> str:
        answer = self.machine.agent.run(script, seconds=90.0)
        if answer.code:
            raise RigError(f"the rig's script failed in the guest: {answer.err.strip() or answer.out.strip()}")
        return answer.out

    def _hang_up(self) -> None:
        if self._sensor is not None:
            self._sensor.close()
        self.close()


@target_factory.reg_driver
@attr.s(eq=False)
class GuestAgentDriver(Driver, CommandProtocol, FileTransferProtocol):
    """Commands as root, over the virtio serial port of a virtual board."""

    bindings = {"board": VirtualBoardDriver}  # noqa: RUF012 - labgrid's way to say it

    def on_activate(self) -> None:
        self.wait_for()

    @property
    def _agent(self) -> agent.Agent:
        machine: Machine = self.board.machine
        return machine.agent

    @Driver.check_active
    def run(self, command: str, timeout: float = 60.0) -> tuple[list[str], list[str], int]:
        """Return the lines of standard output and error, and the exit status."""
        answer = self._agent.run(command, seconds=timeout)
        return answer.out.splitlines(), answer.err.splitlines(), answer.code

    @Driver.check_active
    def run_check(self, command: str, timeout: float = 60.0) -> list[str]:
        """Return the lines of standard output.

        Raises:
            ExecutionError: the exit status was not 0.
        """
        out, err, code = self.run(command, timeout=timeout)
        if code:
            raise ExecutionError(f"{command}: exit status {code}", out, err)
        return list(out)

    @Driver.check_active
    def get_status(self) -> int:
        return int(self._agent.answers())

    def wait_for(self) -> float:
        """Wait until the guest has booted far enough to answer; returns the seconds. It boots slowly here."""
        return boots(self.board.machine, seconds=BOOT_SECONDS)

    @Driver.check_active
    def poll_until_success(self, command: str, timeout: float = 60.0) -> bool:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.run(command)[2] == 0:
                return True
            time.sleep(0.5)
        return False

    @Driver.check_active
    def put(self, filename: str, remotepath: str) -> None:
        self._agent.put(Path(filename).read_bytes(), remotepath)

    @Driver.check_active
    def get(self, filename: str, destination: str) -> None:
        Path(destination).write_text("\n".join(self.run_check(f"cat {filename}")))


def settings(driver: Any) -> Machine:
    """Return the machine behind a driver, for tests that only a virtual board can take."""
    machine: Machine = driver.machine
    return machine
