"""A board that U-Boot starts: QEMU's arm64 machine with the U-Boot that Debian builds for it, and a disk of our layout.

Stood in for: the kernel images (an EFI application that says its slot on the serial line and then waits), the board's
own U-Boot and its eMMC (virtio, and the environment in the machine's flash).
"""

import os
import shutil
import struct
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hil.loopback.children import Child, RigError
from hil.rig.media import fat_stick
from hil.rig.patience import patient
from hil.rig.qmp import Qmp
from image.builder import disk
from image.builder.boards import Board

QEMU: Final = "qemu-system-aarch64"
FIRMWARE: Final = Path(os.environ.get("SLUICE_RIG_UBOOT", "/usr/lib/u-boot/qemu_arm64/u-boot.bin"))
_FLASH_BYTES: Final = 64 << 20  # of one bank
_ENVIRONMENT_BYTES: Final = 0x40000  # CONFIG_ENV_SIZE of qemu_arm64, at the beginning of the second bank
_ESP_BYTES: Final = 64 << 20

_SAYS: Final = (
    0xF9402020,  # ldr x0, [x1, #64]: ConOut of the system table
    0xF9400402,  # ldr x2, [x0, #8]: OutputString
    0x10000081,  # adr x1, the text
    0xD63F0040,  # blr x2
    0xD503207F,  # wfi
    0x17FFFFFF,  # and again
)
_FAILS: Final = (0xD2800020, 0xD65F03C0)  # movz x0, #1; ret


def says(text: str) -> bytes:
    """Return an EFI application that writes a text on the console and waits for ever."""
    return _application(struct.pack("<6I", *_SAYS) + f"{text}\r\n\0".encode("utf-16-le"))


def fails() -> bytes:
    """Return an EFI application that comes back with an error at once, as the stub of a damaged kernel image does."""
    return _application(struct.pack("<2I", *_FAILS))


def _application(code: bytes) -> bytes:
    """Wrap position-independent arm64 code as PE32+ with one section."""
    body = code.ljust(-(-len(code) // 512) * 512, b"\0")
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0xAA64, 1, 0, 0, 0, 240, 0x0206)
    sizes = struct.pack("<HBBIIIII", 0x20B, 0, 0, len(body), 0, 0, 0x1000, 0x1000)
    windows = struct.pack("<QII6HIIIIHH4QII", 0, 0x1000, 512, *[0] * 6, 0, 0x2000, 512, 0, 10, 0, *[0] * 4, 0, 16)
    text = b".text\0\0\0" + struct.pack("<IIIIIIHHI", len(code), 0x1000, len(body), 512, 0, 0, 0, 0, 0x60000020)
    return (head + coff + sizes + windows + bytes(16 * 8) + text).ljust(512, b"\0") + body


class UBootMachine:
    """A board with a power switch, a reset button, a serial line that is logged, and an environment to look into."""

    def __init__(self, folder: Path, board: Board, script: bytes, kernels: Mapping[str, bytes]) -> None:
        """Make the disk of a new board, as the image builder lays it out; it is off.

        Args:
            folder: made; the board's own.
            board: whose partitions the disk has, apart from their sizes.
            script: text of boot.cmd.
            kernels: EFI applications by slot.

        Raises:
            RigError: a program is not installed.
        """
        for program, package in ((QEMU, "qemu-system-arm"), ("sfdisk", "fdisk"), ("fw_setenv", "libubootenv-tool")):
            if shutil.which(program, path=_PATH) is None:
                raise RigError(f"{program} is not installed: apt-get install {package}")
        if not FIRMWARE.is_file():
            raise RigError(f"{FIRMWARE} is not there: apt-get install u-boot-qemu")
        folder.mkdir(parents=True)
        self.folder = folder
        self.environment = folder / "flash.raw"
        self.log = folder / "console.log"
        self.log.touch()
        self._disk = folder / "disk.raw"
        self._build(board, script, kernels)
        self.lose_environment()
        self._sockets = Path(f"/tmp/sluice-rig-{os.getpid()}-{uuid.uuid4().hex[:12]}")  # paths of sockets are short
        self._child: Child | None = None
        self._seen = 0

    def _build(self, board: Board, script: bytes, kernels: Mapping[str, bytes]) -> None:
        (self.folder / "boot.scr").write_bytes(disk.uboot_script(script, 0))
        files = {"boot.scr": self.folder / "boot.scr"}
        for slot, content in kernels.items():
            (self.folder / f"{slot}.efi").write_bytes(content)
            files[f"EFI/sluice/{slot}.efi"] = self.folder / f"{slot}.efi"
        tree = self.folder / "esp"
        disk.esp_tree(tree, board, None, files, 0)
        esp = fat_stick(self.folder / "esp.raw", {}, label="ESP", mib=_ESP_BYTES >> 20)
        _run("mcopy", "-s", "-i", str(esp), *(str(each) for each in sorted(tree.iterdir())), "::")
        loader = board.partitions.loader >> 20
        table = (
            f"label: gpt\nstart=1MiB, size={loader}MiB, type={disk.UBOOT_ENVIRONMENT}, name=loader\n"
            f"start={1 + loader}MiB, size={_ESP_BYTES >> 20}MiB, type=U, name=ESP, attrs=LegacyBIOSBootable\n"
        )
        with self._disk.open("wb") as out:
            out.truncate(_ESP_BYTES + (loader + 2 << 20))
        _run("sfdisk", "--quiet", str(self._disk), stdin=table)
        with self._disk.open("r+b") as out:
            out.seek(1 + loader << 20)
            out.write(esp.read_bytes())
        esp.unlink()

    # ---- the environment ---------------------------------------------------------------------------

    def lose_environment(self) -> None:
        """Empty the flash, as on a new board."""
        with self.environment.open("wb") as flash:
            flash.truncate(_FLASH_BYTES)

    def run_chooser(self, chooser: Path, *words: str, running: str) -> tuple[int, str]:
        """Run a boot-chooser back end as the system in slot `running` does; returns status and output.

        fw_printenv and fw_setenv are libubootenv's, and work on the flash: the board must be off.
        """
        tools, cmdline = self.folder / "bin", self.folder / "cmdline"
        tools.mkdir(exist_ok=True)
        (self.folder / "fw_env.config").write_text(f"{self.environment} 0x0 {_ENVIRONMENT_BYTES:#x}\n")
        cmdline.write_text(f"quiet rauc.slot={running} ro\n")
        for name in ("fw_printenv", "fw_setenv"):
            real = shutil.which(name, path=_PATH)
            (tools / name).write_text(f'#!/bin/sh\nexec {real} -c {self.folder / "fw_env.config"} "$@"\n')
            (tools / name).chmod(0o755)
        environment = {"PATH": f"{tools}:{_PATH}", "SLUICE_CMDLINE": str(cmdline)}
        done = subprocess.run([chooser, *words], env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip()

    def variable(self, name: str) -> str | None:
        """Return a variable of the environment that U-Boot has saved; None if it has not."""
        content = self.environment.read_bytes()[4:_ENVIRONMENT_BYTES]
        for line in content[: content.find(b"\0\0")].split(b"\0"):
            if line.startswith(f"{name}=".encode()):
                return line.split(b"=", 1)[1].decode()
        return None

    def set_variables(self, values: Mapping[str, str]) -> None:
        """Change variables of the environment; one that is lost is made of these alone."""
        config = self.folder / "fw_env.config"
        config.write_text(f"{self.environment} 0x0 {_ENVIRONMENT_BYTES:#x}\n")
        (self.folder / "empty").touch()
        text = "".join(f"{name}={value}\n" for name, value in values.items())
        _run("fw_setenv", "-c", str(config), "-f", str(self.folder / "empty"), "-s", "-", stdin=text)

    # ---- the boot partition ------------------------------------------------------------------------

    def change_files(self, board: Board, files: Mapping[str, bytes | None]) -> None:
        """Replace files of the boot partition, or remove those that are None; the board must be off."""
        place = f"{self._disk}@@{1 + (board.partitions.loader >> 20)}M"
        for name, content in files.items():
            if content is None:
                _run("mdel", "-i", place, f"::{name}")
            else:
                (self.folder / "file").write_bytes(content)
                _run("mcopy", "-o", "-i", place, str(self.folder / "file"), f"::{name}")

    # ---- power -------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Switch it on; its log is read from here on."""
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        (self._sockets / "qmp").unlink(missing_ok=True)
        self._seen = self.log.stat().st_size
        words = [
            *(QEMU, "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "virt", "-accel", "tcg", "-cpu", "cortex-a53", "-m", "512M", "-bios", str(FIRMWARE)),
            *("-drive", f"if=pflash,unit=1,format=raw,file={self.environment}"),
            *("-drive", f"if=none,id=disk,format=raw,file={self._disk}", "-device", "virtio-blk-pci,drive=disk"),
            *("-chardev", f"file,id=console,path={self.log},append=on", "-serial", "chardev:console"),
            *("-qmp", f"unix:{self._sockets / 'qmp'},server=on,wait=off"),
        ]
        self._child = Child("qemu", words, self.folder / "qemu.log")
        self._child.start()

    def reset(self) -> None:
        """Press the reset button: memory stays as it is, the processor starts anew."""
        self._seen = self.log.stat().st_size
        with_monitor = Qmp(self._sockets / "qmp")
        try:
            with_monitor.command("system_reset")
        finally:
            with_monitor.close()

    def said(self) -> str:
        """Return what came over the serial line since power-on or reset."""
        return self.log.read_bytes()[self._seen :].decode(errors="replace")

    def wait_for(self, text: str, *, seconds: float = 90.0) -> str:
        """Wait until a text came over the serial line; returns all that came.

        Raises:
            RigError: it did not.
        """
        if self._child is None:
            raise RigError("the board is off")
        try:
            self._child.wait_until(lambda: text in self.said(), f"{text!r} on the console", patient(seconds))
        except RigError as error:
            raise RigError(f"{error}\n{self.said()[-3000:]}") from error
        return self.said()

    def cut_power(self) -> None:
        """Take the power away."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def close(self) -> None:
        """Leave no process and no large file behind."""
        self.cut_power()
        shutil.rmtree(self._sockets, ignore_errors=True)
        for file in self.folder.glob("*.raw"):
            file.unlink()


_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _run(*words: str, stdin: str = "") -> None:
    environment = {**os.environ, "PATH": _PATH, "MTOOLS_SKIP_CHECK": "1"}
    done = subprocess.run(words, env=environment, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(f"{words[0]} failed: {done.stderr.strip()}")
