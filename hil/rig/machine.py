"""The virtual board: QEMU with emulated processors (never KVM), UEFI firmware, a TPM in software, and a disk to break.

What is one board's own stays in its directory: the overlay of the disk, the firmware's variables, the TPM's state and
the console's log. The image is only read.
"""

import contextlib
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hil.loopback.children import Child, RigError, free_port
from hil.loopback.tpm import SoftwareTpm
from hil.rig import agent
from hil.rig.guest import SENSOR_PORT
from hil.rig.patience import patient
from hil.rig.qmp import Qmp, QmpError

_PLACES: Final = (Path("/usr/share/OVMF"), Path("/usr/share/AAVMF"), Path("/usr/share/qemu-efi-aarch64"))
NIC: Final = "nic"
DISK: Final = "disk"


@dataclass(frozen=True, slots=True)
class Model:
    """What differs between the kinds of virtual board."""

    binary: str
    package: str
    machine: str
    cpu: str
    code: tuple[str, ...]  # of the firmware, the first that is there
    variables: tuple[str, ...]
    tpm: str
    watchdog: str | None
    credentials: bool  # whether SMBIOS reaches the guest's systemd


MODELS: Final = {
    # The machine type is fixed, so that a snapshot can be read by the same QEMU whatever its default becomes.
    "amd64": Model(
        binary="qemu-system-x86_64",
        package="qemu-system-x86",
        machine="q35,smm=off",
        # Five-level paging costs an emulator much and brings nothing.
        cpu="max,la57=off",
        code=("OVMF_CODE_4M.fd", "OVMF_CODE.fd"),
        variables=("OVMF_VARS_4M.fd", "OVMF_VARS.fd"),
        tpm="tpm-tis",
        watchdog="i6300esb",
        credentials=True,
    ),
    "arm64": Model(
        binary="qemu-system-aarch64",
        package="qemu-system-arm",
        machine="virt",
        cpu="cortex-a72",
        code=("AAVMF_CODE.fd", "QEMU_EFI.fd"),
        variables=("AAVMF_VARS.fd", "QEMU_VARS.fd"),
        tpm="tpm-tis-device",
        watchdog="i6300esb",
        credentials=True,
    ),
}


@dataclass
class Board:
    """One virtual board."""

    image: Path
    directory: Path
    kind: str = "amd64"
    memory_mib: int = 2048
    processors: int = 2
    disk_bytes: int = 4 << 30
    serial: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    firmware: Path | None = None
    """Folder of the firmware, where it is not in its usual place."""


class Machine:
    """A board with its power switch, its console, its TPM, and its monitor."""

    def __init__(self, board: Board) -> None:
        """Prepare the board's directory; nothing is started.

        Raises:
            RigError: a program or the firmware is not installed.
        """
        self.board = board
        self.model = MODELS[board.kind]
        for program, package in ((self.model.binary, self.model.package), ("qemu-img", "qemu-utils")):
            if shutil.which(program) is None:
                raise RigError(f"{program} is not installed: apt-get install {package}")
        self.directory = board.directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.console_log = self.directory / "console.log"
        self.disk = self.directory / "disk.qcow2"
        self.variables = self.directory / "variables.qcow2"
        self.ssh_port = free_port()
        # The paths of sockets are limited to 107 bytes, those of test folders are not.
        self.sockets = Path(f"/tmp/sluice-rig-{os.getpid()}-{board.serial}")
        self.agent = agent.Agent(self.sockets / "agent")
        self.tpm = SoftwareTpm(self.directory / "tpm", self.directory / "tpm.log")
        self._tpm_child = self._tpm_process()
        self._qmp: Qmp | None = None
        self._child: Child | None = None
        self.disk_faults: list[dict[str, Any]] = []
        """Rules of blkdebug (see QEMU's docs/devel/blkdebug.rst), in force from the next start on."""
        self.write_log: Path | None = None
        """Where what reaches the disk is written down (`hil.rig.writes`), from the next start on; no snapshots then."""
        self.extra: list[str] = []

    # ---- the disk ----------------------------------------------------------------------------------

    def flash(self) -> None:
        """Make the board as it leaves the factory: the image on its disk, empty firmware variables, a new TPM.

        Raises:
            RigError: it is running, or the image is not there.
        """
        if self.running:
            raise RigError("a board is flashed while it is off")
        if not self.board.image.is_file():
            raise RigError(f"there is no image at {self.board.image}: make image TARGET=uefi-{self.board.kind}")
        shutil.rmtree(self.directory / "tpm", ignore_errors=True)
        (self.directory / "tpm").mkdir(mode=0o700)
        _image("create", "-f", "qcow2", "-F", "raw", "-b", str(self.board.image.resolve()), str(self.disk))
        if self.board.disk_bytes > self.board.image.stat().st_size:
            _image("resize", "-q", str(self.disk), str(self.board.disk_bytes))
        _image("convert", "-f", "raw", "-O", "qcow2", str(self._firmware(self.model.variables)), str(self.variables))
        self.tpm.manufacture(self.maker)

    @property
    def mac(self) -> str:
        """The address of its network card: of the range for local use, and its own."""
        digits = uuid.uuid5(uuid.NAMESPACE_OID, self.board.serial).hex[:10]
        return ":".join(["52", *(digits[at : at + 2] for at in range(0, 10, 2))])

    @property
    def maker(self) -> Path:
        """The authority of the TPM's maker, which a site may share between its boards."""
        return self.directory.parent / "tpm-maker"

    def raw_disk(self, target: Path) -> Path:
        """Write what is on the disk as a sparse raw file; the board must be off, or stopped by the monitor."""
        _image("convert", "-U", "-O", "raw", "-S", "4k", str(self.disk), str(target))
        return target

    def replace_disk(self, raw: Path) -> None:
        """Put a raw disk into the board, which must be off."""
        self.disk.unlink(missing_ok=True)
        _image("convert", "-f", "raw", "-O", "qcow2", "-S", "4k", str(raw), str(self.disk))

    # ---- power -------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether it has power."""
        return self._child is not None and self._child.running

    def power_on(self) -> None:
        """Switch it on. Returns when QEMU runs, not when the guest has booted.

        Raises:
            RigError: QEMU does not start; its last lines are told.
        """
        if self.running:
            return
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        for path in self.sockets.iterdir():
            path.unlink()
        self.agent.close()
        self._tpm_child.start()
        self._tpm_child.wait_until((self.sockets / "tpm").exists, "swtpm listens", patient(10.0))
        self._child = Child("qemu", self.command(), self.directory / "qemu.log")
        self._child.start()
        self._child.wait_until((self.sockets / "qmp").exists, "QEMU listens", patient(30.0))
        self._qmp = Qmp(self.sockets / "qmp")

    def cut_power(self) -> None:
        """Take the power away: what the guest had in memory is gone, what it had written to the disk is there."""
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        self.agent.close()
        if self._child is not None:
            self._child.kill()
        self._tpm_child.kill()

    def power_off(self, *, seconds: float = 120.0) -> None:
        """Press the power button and wait; cut the power when nothing follows."""
        if self.running:
            try:
                self.qmp.command("system_powerdown")
                self.qmp.wait_for("SHUTDOWN", seconds=seconds)
            except QmpError:
                pass
        self.cut_power()

    def close(self) -> None:
        """Leave no process and no socket behind."""
        self.cut_power()
        shutil.rmtree(self.sockets, ignore_errors=True)

    @property
    def qmp(self) -> Qmp:
        """The monitor of the running machine.

        Raises:
            RigError: it is off.
        """
        if self._qmp is None or not self.running:
            log = self._child.tail() if self._child else ""
            raise RigError(f"the virtual board is off\n{log}")
        return self._qmp

    @property
    def console_socket(self) -> Path:
        """The serial line, as a UNIX socket."""
        return self.sockets / "console"

    # ---- snapshots ---------------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Keep memory, disk, firmware variables and TPM under a name.

        Raises:
            QmpError: QEMU cannot.
        """
        self._snapshot("savevm", name)

    def restore(self, name: str) -> None:
        """Go back to what was kept, in about a second; the board must have power.

        Raises:
            QmpError: there is no such snapshot.
        """
        self.agent.close()
        self._snapshot("loadvm", name)

    def _snapshot(self, verb: str, name: str) -> None:
        said = self.qmp.monitor(f"{verb} {name}", seconds=300.0).strip()
        if said:
            raise QmpError(f"{verb} {name}: {said}")

    # ---- the command line --------------------------------------------------------------------------

    def command(self) -> list[str]:
        """Return the command that starts QEMU."""
        at = self.sockets
        log = f"logfile={self.console_log},logappend=on"
        words = [
            *(self.model.binary, "-nodefaults", "-no-user-config", "-display", "none"),
            # Named, because QEMU would take KVM where its device node exists, and the node does not say that it works.
            *("-machine", self.model.machine, "-accel", "tcg,thread=multi,tb-size=512"),
            *("-cpu", self.model.cpu, "-smp", str(self.board.processors), "-m", f"{self.board.memory_mib}M"),
            *("-uuid", str(uuid.uuid5(uuid.NAMESPACE_OID, self.board.serial))),
            *("-rtc", "base=utc", "-action", "watchdog=reset"),
            *("-qmp", f"unix:{at / 'qmp'},server=on,wait=off"),
            *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={self._firmware(self.model.code)}"),
            *("-drive", f"if=pflash,unit=1,format=qcow2,file={self.variables}"),
            *self._disk_words(),
            *(
                "-chardev",
                f"socket,id=console,path={at / 'console'},server=on,wait=off,{log}",
            ),
            *("-serial", "chardev:console"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={at / 'agent'},server=on,wait=off"),
            *("-device", f"virtserialport,chardev=agent,name={agent.PORT}"),
            *("-chardev", f"socket,id=sensor,path={at / 'sensor'},server=on,wait=off"),
            *("-device", f"virtserialport,chardev=sensor,name={SENSOR_PORT}"),
            *("-chardev", f"socket,id=tpm,path={at / 'tpm'}", "-tpmdev", "emulator,id=tpm,chardev=tpm"),
            *("-device", f"{self.model.tpm},tpmdev=tpm"),
            *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22"),
            *("-device", f"virtio-net-pci,netdev=net,id={NIC},mac={self.mac}"),
            *("-device", "qemu-xhci,id=usb", "-device", "virtio-rng-pci"),
            *("-smbios", f"type=1,manufacturer=Sluice,product=virtual-rig,serial={self.board.serial}"),
        ]
        if self.model.watchdog:
            words += ["-device", self.model.watchdog]
        if self.model.credentials:
            words += self._credential_words()
        return words + self.extra

    def _disk_words(self) -> Sequence[str]:
        # As on a disk, what the guest has not written is lost when QEMU is killed; QEMU itself holds nothing back.
        file: dict[str, Any] = {"driver": "file", "filename": str(self.disk), "discard": "unmap"}
        node: dict[str, Any] = {"driver": "qcow2", "node-name": DISK, "discard": "unmap", "file": file}
        if self.disk_faults:
            # Above the qcow2, so that its own metadata keeps working while the guest's reads or writes fail.
            node = {
                "driver": "blkdebug",
                "node-name": f"{DISK}-faults",
                "inject-error": self.disk_faults,
                "image": node,
            }
        if self.write_log is not None:
            log = {"driver": "file", "filename": str(self.write_log)}
            node = {"driver": "blklogwrites", "node-name": f"{DISK}-log", "file": node, "log": log}
        top = node["node-name"]
        return ["-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive={top},id=blk,bootindex=0"]

    def _credential_words(self) -> list[str]:
        words: list[str] = []
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        for number, text in enumerate(agent.credentials()):
            file = self.sockets / f"credential-{number}"
            file.write_text(text)
            words += ["-smbios", f"type=11,path={file}"]
        return words

    def _tpm_process(self) -> Child:
        words = [
            *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.directory / 'tpm'},mode=0600"),
            *("--ctrl", f"type=unixio,path={self.sockets / 'tpm'}"),
        ]
        return Child("swtpm", words, self.directory / "tpm.log")

    def _firmware(self, names: Sequence[str]) -> Path:
        places = [self.board.firmware] if self.board.firmware else _PLACES
        for name in names:
            for place in places:
                if (place / name).is_file():
                    return place / name
        package = "ovmf" if self.board.kind == "amd64" else "qemu-efi-aarch64"
        raise RigError(f"there is no UEFI firmware ({names[0]}): apt-get install {package}")


def boots(machine: Machine, *, seconds: float) -> float:
    """Wait until the guest's agent answers; returns how long that took.

    Raises:
        RigError: it does not, with the end of the console's log.
    """
    begin, seconds = time.monotonic(), patient(seconds)
    while time.monotonic() < begin + seconds:
        with contextlib.suppress(agent.AgentError):
            if machine.agent.answers():
                return time.monotonic() - begin
        if not machine.running:
            break
        time.sleep(1.0)
    raise RigError(f"the guest did not come up within {seconds:.0f} s; its console ends with\n{tail(machine)}")


def tail(machine: Machine, lines: int = 40) -> str:
    """Return the last lines of the console."""
    if not machine.console_log.exists():
        return ""
    return "\n".join(machine.console_log.read_text(errors="replace").splitlines()[-lines:])


def _image(*words: str) -> None:
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(f"qemu-img {words[0]} failed: {done.stderr.strip()}")
