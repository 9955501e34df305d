"""A whole machine whose power can be cut: QEMU with Debian's kernel, this interpreter and the outbox in a RAM disk.

The disk is an ext4 image behind QEMU's `blklogwrites`, which writes down what reached it and when it was flushed, in
the format of Linux's dm-log-writes. Killing QEMU is the power cut; what a volatile write cache would have lost with it
is taken from the log by `tests.chaos.storage.cuts`.
"""

import json
import os
import platform
import re
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tests.chaos.storage.campaign import ROOT
from tests.chaos.storage.cuts import Step
from tests.chaos.storage.fusedisk import FLUSH, WRITE

CACHE: Final = ROOT / "var" / "chaos-machine"
MEMORY_MIB: Final = 512
_KERNEL: Final = "linux-image-cloud-amd64"
_WANTED: Final = ("virtio_blk", "virtio_pci", "crc32c_generic", "crc32c-intel", "ext4")


def missing() -> str | None:
    """Say why there can be no such machine here; None if there can."""
    if platform.machine() != "x86_64":
        return "the machine is an x86-64 one"
    for tool, package in (("qemu-system-x86_64", "qemu-system-x86"), ("dpkg-deb", "dpkg"), ("ldd", "libc-bin")):
        if shutil.which(tool) is None:
            return f"there is no {tool} (apt-get install {package})"
    if not (CACHE / "boot.cpio").exists() and shutil.which("apt-get") is None:
        return "there is no apt-get to fetch a kernel with"
    return None


class NoKernelError(Exception):
    """The kernel cannot be had: no mirror, or no network."""


def prepared() -> tuple[Path, Path]:
    """Return a kernel and a RAM disk; the kernel is fetched once from the mirror that apt uses, the rest made anew.

    Raises:
        NoKernelError: see there.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    tree = _kernel_tree()
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    ram_disk = CACHE / f"boot-{os.getpid()}.cpio"
    with ram_disk.open("wb") as stream:
        stream.write(_archive(_files(tree)))
    return kernel, ram_disk


def _kernel_tree() -> Path:
    tree = CACHE / "kernel"
    if tree.exists():
        return tree
    said = subprocess.run(["apt-cache", "depends", _KERNEL], check=False, capture_output=True, text=True).stdout
    found = re.search(r"Depends: (linux-image-\S+-cloud-amd64)$", said, re.MULTILINE)
    if found is None:
        raise NoKernelError(f"apt knows no {_KERNEL}: run apt-get update")
    fetch = ["apt-get", "download", "-o", "APT::Sandbox::User=root", found[1]]
    fetched = subprocess.run(fetch, cwd=CACHE, check=False, capture_output=True, text=True, timeout=120)
    packages = sorted(CACHE.glob("linux-image-*.deb"))
    if fetched.returncode != 0 or not packages:
        raise NoKernelError(f"{found[1]} cannot be downloaded: {fetched.stderr.strip()[-300:]}")
    half = CACHE / "kernel.part"
    shutil.rmtree(half, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", str(packages[-1]), str(half)], check=True)
    half.rename(tree)
    return tree


def _files(tree: Path) -> dict[str, bytes | None]:
    """Return what goes into the RAM disk, by absolute path; None for a directory."""
    files: dict[str, bytes | None] = {}
    modules = _modules(tree)
    files["/modules/order.json"] = json.dumps([module.name for module in modules]).encode()
    files |= {f"/modules/{module.name}": module.read_bytes() for module in modules}
    listed = subprocess.run(
        [sys.executable, "-m", "tests.chaos.storage.machine_init", "--modules"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    paths = {Path(name) for name in json.loads(listed.stdout.splitlines()[-1])}
    interpreter = Path(sys.executable).resolve()
    library = Path(os.__file__).parent
    paths |= {interpreter, library / "os.py", *(library / "encodings").glob("*.py")}
    paths |= {path for path in (library / "lib-dynload").glob("*.so") if path.name.startswith(("_posix", "_ctypes"))}
    paths |= _shared_libraries(path for path in paths if path == interpreter or path.suffix == ".so")
    files |= {str(path): path.read_bytes() for path in paths if path.is_file()}
    site = next(path for path in map(Path, sys.path) if path.name == "site-packages" and path.is_dir())
    init = (
        f"#!{interpreter} -B\nimport sys\nsys.path[:0] = [{str(ROOT)!r}, {str(site)!r}]\n"
        "from tests.chaos.storage.machine_init import main\nmain()\n"
    )
    files["/init"] = init.encode()
    for place in ("/dev", "/proc", "/sys", "/tmp", "/data"):
        files[place] = None
    return files


def _shared_libraries(binaries: Iterable[Path]) -> set[Path]:
    found: set[Path] = set()
    for binary in binaries:
        said = subprocess.run(["ldd", str(binary)], check=False, capture_output=True, text=True).stdout
        found |= {Path(word) for word in said.split() if word.startswith("/") and ".so" in word}
    return found


def _modules(tree: Path) -> list[Path]:
    """Return the kernel's modules that a disk and ext4 need, each after those it depends on."""
    there = {path.stem.replace("-", "_"): path for path in tree.rglob("*.ko")}
    ordered: list[Path] = []

    def add(name: str) -> None:
        path = there.get(name.replace("-", "_"))
        if path is None or path in ordered:
            return  # built in
        needs = re.search(rb"\0depends=([^\0]*)\0", b"\0" + path.read_bytes())
        for other in needs[1].decode().split(",") if needs else []:
            if other:
                add(other)
        ordered.append(path)

    for name in _WANTED:
        add(name)
    return ordered


def _archive(files: dict[str, bytes | None]) -> bytes:
    """Make a cpio archive of the kind the kernel unpacks (newc; Documentation/driver-api/early-userspace)."""
    entries: dict[str, bytes | None] = {}
    for name in sorted(files):
        for parent in reversed(Path(name).parents):
            entries.setdefault(str(parent), None)
        entries[name] = files[name]
    parts: list[bytes] = []
    for number, (name, data) in enumerate([*entries.items(), ("/TRAILER!!!", b"")], start=1):
        stored = name.lstrip("/") or "."
        mode = stat.S_IFDIR | 0o755 if data is None else stat.S_IFREG | 0o755
        content = data or b""
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(stored) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + stored.encode() + b"\0"
        parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


class Machine:
    """One boot, from power on to the cut."""

    def __init__(self, kernel: Path, ram_disk: Path, disk: Path, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.console = directory / "console.log"
        self.log = directory / "writes.log"
        self.log.write_bytes(b"")
        self.console.write_bytes(b"")
        drives = (
            f"driver=file,node-name=image,filename={disk}",
            f"driver=file,node-name=writes,filename={self.log}",
            "driver=blklogwrites,node-name=logged,file=image,log=writes,log-append=off",
        )
        self._command = [
            *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", str(MEMORY_MIB)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(kernel), "-initrd", str(ram_disk), "-serial", f"file:{self.console}"),
            *("-append", "console=ttyS0 quiet panic=-1 mitigations=off rdinit=/init"),
            *(word for drive in drives for word in ("-blockdev", drive)),
            *("-device", "virtio-blk-pci,drive=logged"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def power_on(self) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "--", *self._command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def cut(self) -> None:
        """Kill it, as a plug that is pulled."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def said(self) -> list[str]:
        """Return its marks by now, whole lines only."""
        lines = self.console.read_text(errors="replace").split("\n")[:-1]
        return [line.strip()[2:] for line in lines if line.startswith("@ ")]

    def wait(self, marks: int, seconds: float) -> None:
        """Wait until it has said so much.

        Raises:
            AssertionError: it has died, or the time is over; its console is in the message.
        """
        deadline = time.monotonic() + seconds
        while len(self.said()) < marks:
            assert self._process is not None
            dead = self._process.poll() is not None or "died" in self.said()
            if dead or time.monotonic() > deadline:
                tail = self.console.read_text(errors="replace")[-3000:]
                reason = "it died" if dead else f"not {marks} marks within {seconds:.0f} s"
                raise AssertionError(f"{reason}; its console:\n{tail}")
            time.sleep(0.02)


class WriteLog:
    """A log of `blklogwrites`, as `cuts.PowerCut` takes it."""

    MAGIC: Final = 0x6A736677736872  # drivers/md/dm-log-writes.c
    _SUPER: Final = struct.Struct("<QQQI")
    _ENTRY: Final = struct.Struct("<QQQQ")
    _FLUSH, _FUA, _DISCARD = 1, 2, 4

    def __init__(self, file: Path) -> None:
        self._data = file.read_bytes()
        magic, version, _, self._sector = self._SUPER.unpack_from(self._data)
        assert (magic, version) == (self.MAGIC, 1), "not a log of blklogwrites"
        self.steps = list(self._read())

    def payload(self, step: Step) -> bytes:
        return self._data[step.start : step.end]

    def _read(self) -> Iterator[Step]:
        at = self._sector
        while at + self._sector <= len(self._data):
            sector, count, flags, _ = self._ENTRY.unpack_from(self._data, at)
            at += self._sector
            if flags & self._FLUSH or flags & self._FUA:
                yield Step(FLUSH, 0, at, at)
            if not count and not flags:
                return  # the power went before the rest was written down
            if count and not flags & self._DISCARD:
                end = at + count * self._sector
                if end > len(self._data):
                    return
                yield Step(WRITE, sector * self._sector, at, end)
                at = end
                if flags & self._FUA:
                    yield Step(FLUSH, 0, at, at)
