"""A disk that remembers what was written when, and can be made to fail.

One file is presented through FUSE and used as a loop device; a real file system of the kernel lives on it. A process
of its own serves it: every write and every flush goes into a log in the order in which the device saw them, and so
do marks of the program under test. `tests.chaos.storage.cuts` makes from the log what the disk could hold after a
power cut at any moment: all that was flushed, and any part of what was not.

Knobs (see `FuseDisk.set`) make it slow, frozen, or let it report errors, as a worn card does.
"""

import argparse
import contextlib
import errno
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from tests.simulators.waiting import wait_for

WRITE: Final = 1
FLUSH: Final = 2
MARK: Final = 3
FAULT: Final = 4  # a request that was answered with an error; of a write, what should have been written

HEADER: Final = struct.Struct("<BQI")
"""kind, offset on the disk (of a mark, the monotonic time in nanoseconds), length of what follows"""

FileSystem = Literal["ext4", "xfs"]

_NAME: Final = "/disk"
_ROOT: Final = Path(__file__).parents[3]
_TOOLS: Final = "/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> str | None:
    """Say why such a disk cannot be made here; None if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not Path(device).exists():
            return f"there is no {device}"
    for tool in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(tool, path=_TOOLS) is None:
            return f"there is no {tool} (Debian: e2fsprogs, mount)"
    try:
        import mfusepy  # noqa: F401, PLC0415 - it looks for libfuse when it is imported
    except (ImportError, OSError) as error:
        return f"mfusepy cannot be used ({error}); pip install sluice[dev], apt-get install libfuse3-3"
    return None


@dataclass
class Knobs:
    """What the disk does wrong. A number of failures is counted down; -1 is for ever."""

    fsync_failures: int = 0
    write_failures: int = 0
    write_errno: int = errno.EIO
    fsync_seconds: float = 0.0
    write_seconds: float = 0.0
    frozen: bool = False


class FuseDisk:
    """A recorded disk below a directory: made with a file system, served, mounted, and taken down again.

    `base` is an image to begin with, as one that a power cut has left.
    """

    def __init__(
        self, directory: Path, size_mib: int = 24, file_system: FileSystem = "ext4", *, base: Path | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.base = directory / "base.img"
        self.log = directory / "disk.log"
        self.control = directory / "control"
        self.mountpoint = directory / f"mounted-{os.getpid()}"
        self._image = directory / "now.img"
        self._served = directory / f"fuse-{os.getpid()}"
        self._server: subprocess.Popen[bytes] | None = None
        self._mounted = False
        self._file_system = file_system
        if base is None:
            make_file_system(self.base, size_mib, file_system)
        else:
            shutil.copyfile(base, self.base)
        shutil.copyfile(self.base, self._image)
        self.mountpoint.mkdir(exist_ok=True)
        self._served.mkdir(exist_ok=True)

    def open(self) -> None:
        """Serve and mount it."""
        try:
            self._serve()
            self.mount()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def mount(self) -> None:
        """Mount the file system, as after a boot."""
        if self._mounted:
            return
        # Another experiment may take the free loop device between the asking and the taking.
        insist(["mount", "-t", self._file_system, "-o", "loop", str(self._served / "disk"), str(self.mountpoint)])
        self._mounted = True
        _write_pages(self.mountpoint)

    def unmount(self) -> None:
        """Unmount it; whoever uses it must be gone."""
        if self._mounted:
            subprocess.run(["umount", str(self.mountpoint)], check=True)
            self._mounted = False

    def set(self, **knobs: Any) -> None:
        """Turn knobs; those not named stay."""
        tell(self.control, {"set": knobs})

    def mark(self, text: str) -> None:
        """Write a mark into the log: what has been flushed by now stands before it."""
        tell(self.control, {"mark": text})

    def marked(self, word: str) -> int:
        """Return how many marks there are by now that begin with a word."""
        return tell(self.control, {"count": word})

    def close(self) -> None:
        """Heal the disk, unmount everything, end the server."""
        if self._server is None:
            return
        if self._server.poll() is None:
            self.set(fsync_failures=0, write_failures=0, fsync_seconds=0.0, write_seconds=0.0, frozen=False)
        if self._mounted:
            done = subprocess.run(["umount", str(self.mountpoint)], check=False, capture_output=True)
            if done.returncode != 0:
                subprocess.run(["umount", "--lazy", str(self.mountpoint)], check=False)
            self._mounted = False
        # The loop device lets go of its file a moment after it is unmounted.
        wait_for(self._unserved, seconds=20, what=f"{self._served} is unmounted")
        self._server.wait(20)
        self._server = None

    def _unserved(self) -> bool:
        return subprocess.run(["umount", str(self._served)], check=False, capture_output=True).returncode == 0

    def _serve(self) -> None:
        command = [sys.executable, "-m", "tests.chaos.storage.fusedisk"]
        paths = [str(path) for path in (self._image, self._served, self.log, self.control)]
        self._server = server = subprocess.Popen(["setpriv", "--pdeathsig=KILL", "--", *command, *paths], cwd=_ROOT)

        def ready() -> bool:
            assert server.poll() is None, "the FUSE server has ended"
            return (self._served / "disk").exists() and self.control.exists()

        wait_for(ready, seconds=20, what="the disk is served")


def make_file_system(image: Path, size_mib: int, kind: FileSystem = "ext4") -> None:
    """Make an empty file system in a file. Nothing of it is left to a background thread."""
    with image.open("wb") as stream:
        stream.truncate(size_mib << 20)
    options = {
        "ext4": ["-q", "-F", "-b", "4096", "-m", "0", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
        "xfs": ["-q", "-f", "-K"],
    }[kind]
    environment = {**os.environ, "PATH": _TOOLS}
    subprocess.run([f"mkfs.{kind}", *options, str(image)], check=True, env=environment)


_TRIES: Final = 5


def insist(command: Sequence[str]) -> None:
    """Run a command a few times, until it succeeds.

    Raises:
        subprocess.CalledProcessError: it never does; its last words are among those of this process.
    """
    for _ in range(_TRIES - 1):
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.3)
    subprocess.run(command, check=True)


def _write_pages(mountpoint: Path) -> None:
    """Have the loop device below a mount write a page at a time.

    FUSE splits larger requests, and the loop driver takes a write that failed half way for one that succeeded: an
    error would go unreported, as no disk does it.
    """
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    (device,) = (fields[0] for fields in mounts if fields[1] == str(mountpoint))
    Path(f"/sys/block/{Path(device).name}/queue/max_sectors_kb").write_text("4")


class Teller:
    """A connection to the server, for a program that marks what it has acknowledged. One thread at a time."""

    def __init__(self, control: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(control))
        self._answers = self._socket.makefile("rb")
        self._lock = threading.Lock()

    def mark(self, text: str) -> None:
        """Return when the mark is in the log."""
        self._ask({"mark": text})

    def _ask(self, question: Mapping[str, Any]) -> int:
        with self._lock:
            self._socket.sendall(json.dumps(question).encode() + b"\n")
            answer = self._answers.readline()
        if not answer.startswith(b"ok "):
            raise ConnectionError(f"the disk said {answer!r}")
        return int(answer[3:])

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


def tell(control: Path, question: Mapping[str, Any]) -> int:
    """Tell the server one thing, or ask it to count marks."""
    teller = Teller(control)
    try:
        return teller._ask(question)
    finally:
        teller.close()


# ---- the server ----------------------------------------------------------------------------------


class _Log:
    """What happened to the disk, in order."""

    def __init__(self, file: Path) -> None:
        self._stream = file.open("ab")
        self._lock = threading.Lock()
        self.marks: Counter[str] = Counter()  # by their first word

    def append(self, kind: int, offset: int = 0, data: bytes = b"") -> None:
        with self._lock:
            if kind == MARK:
                self.marks[data.decode().partition(" ")[0]] += 1
            self._stream.write(HEADER.pack(kind, offset, len(data)))
            self._stream.write(data)
            if kind != WRITE:
                self._stream.flush()


class _Faults:
    """The knobs, and waiting for them."""

    def __init__(self) -> None:
        self._knobs = Knobs()
        self._changed = threading.Condition()

    def set(self, wished: Mapping[str, Any]) -> None:
        names = {field.name for field in fields(Knobs)}
        if unknown := set(wished) - names:
            raise ValueError(f"no such knobs: {sorted(unknown)}")
        with self._changed:
            for name, value in wished.items():
                setattr(self._knobs, name, value)
            self._changed.notify_all()

    def before(self, action: Literal["fsync", "write"]) -> int:
        """Wait as long as the disk takes; return the error number, 0 for none."""
        with self._changed:
            deadline = time.monotonic() + float(getattr(self._knobs, f"{action}_seconds"))
            while self._knobs.frozen or time.monotonic() < deadline:
                # A knob that is turned back ends the wait.
                left = deadline - time.monotonic()
                self._changed.wait(None if self._knobs.frozen else max(left, 0.0))
                if not self._knobs.frozen and getattr(self._knobs, f"{action}_seconds") == 0:
                    break
            left_failures: int = getattr(self._knobs, f"{action}_failures")
            if left_failures > 0:
                setattr(self._knobs, f"{action}_failures", left_failures - 1)
            if not left_failures:
                return 0
            return errno.EIO if action == "fsync" else self._knobs.write_errno


def _converse(connection: socket.socket, log: _Log, faults: _Faults) -> None:
    with connection, connection.makefile("rb") as lines, contextlib.suppress(ConnectionError):  # a victim was killed
        for line in lines:
            question = json.loads(line)
            if "mark" in question:
                log.append(MARK, time.monotonic_ns(), question["mark"].encode())
            faults.set(question.get("set", {}))
            connection.sendall(b"ok %d\n" % log.marks[question.get("count", "")])


def _listen(control: Path, log: _Log, faults: _Faults) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control))
        listener.listen(16)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_converse, args=(connection, log, faults), daemon=True).start()


def serve(image: Path, mountpoint: Path, log_file: Path, control: Path) -> None:
    """Serve the disk until it is unmounted. One request at a time: what a flush covers is never in doubt."""
    import mfusepy  # noqa: PLC0415 - only this process needs it

    descriptor = os.open(image, os.O_RDWR)
    log, faults = _Log(log_file), _Faults()

    class Disk(mfusepy.Operations):  # type: ignore[misc]  # it ships no types
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path != _NAME:
                raise mfusepy.FuseOSError(errno.ENOENT)
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": os.fstat(descriptor).st_size}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", _NAME[1:]]

        def open(self, path: str, flags: int) -> int:
            return 0

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            return 0

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(descriptor, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            if failure := faults.before("write"):
                log.append(FAULT, offset, data)
                raise mfusepy.FuseOSError(failure)
            log.append(WRITE, offset, data)
            return os.pwrite(descriptor, data, offset)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            if failure := faults.before("fsync"):
                log.append(FAULT)
                raise mfusepy.FuseOSError(failure)
            log.append(FLUSH)
            return 0

    threading.Thread(target=_listen, args=(control, log, faults), daemon=True).start()
    mfusepy.FUSE(Disk(), str(mountpoint), foreground=True, nothreads=True, raw_fi=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("image", "mountpoint", "log", "control"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    serve(arguments.image, arguments.mountpoint, arguments.log, arguments.control)
