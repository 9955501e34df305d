"""What stands around a system under test: a local broker, a link that can be cut, the cloud's broker, a disk."""

import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from hil.loopback.children import Child, RigError, free_port, is_listening
from tests.bench.link import ProxyLink

DISK_BYTES = 96 * 1024 * 1024
RESTART_SECONDS = 1.0

BROKER = """\
listener {port} 127.0.0.1
allow_anonymous true
user {user}
persistence true
persistence_location {folder}/
autosave_interval 1
max_queued_messages 0
max_inflight_messages 1000
max_packet_size 8388608
log_dest stdout
acl_file {acl}
"""
"""Of the brokers that are not under test: nothing is dropped for a limit, and what is queued is saved each second."""

PLATFORM_USER = "platform"
ACL = f"""\
topic readwrite #
topic readwrite $SYS/#
user {PLATFORM_USER}
topic write v1/gateway/telemetry
topic write v1/gateway/attributes
topic write v1/gateway/attributes/request
topic write v1/gateway/connect
topic write v1/gateway/disconnect
topic read v1/gateway/attributes/response
topic write v1/devices/me/telemetry
topic write v1/devices/me/attributes
topic write v1/devices/me/attributes/request/+
topic read v1/devices/me/attributes/response/+
topic write v1/devices/me/rpc/request/+
topic read v1/devices/me/rpc/response/+
"""
"""A platform does not send a gateway's own requests back to it; a plain broker would, on topics that go both ways.
A bridge tells of itself below $SYS, which `#` does not cover (MQTT 5 §4.7.2)."""


def mosquitto() -> str:
    """Return the program."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        raise RigError("mosquitto is not installed; `make setup` installs it, or `apt-get install mosquitto`")
    return found


def broker(folder: Path, name: str, port: int) -> Child:
    """Make a broker that is not under test."""
    state = folder / name
    state.mkdir(parents=True, exist_ok=True)
    file, acl = folder / f"{name}.conf", folder / f"{name}.acl"
    acl.write_text(ACL)
    acl.chmod(0o600)
    file.write_text(BROKER.format(port=port, folder=state, user=user(), acl=acl))
    return Child(name, [mosquitto(), "-c", str(file)], folder / f"{name}.log")


def user() -> str:
    """Whom mosquitto should run as: it would leave root for a user that may not write here."""
    return "root" if os.geteuid() == 0 else "mosquitto"


def start_broker(child: Child, port: int) -> None:
    """Start a broker and wait until it listens."""
    child.start()
    child.wait_until(lambda: is_listening(port), f"{child.name} listens")


class Disk:
    """Where the system keeps its state; small, so that it can be filled, where we may mount (root)."""

    def __init__(self, folder: Path, *, small: bool) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        options = f"size={DISK_BYTES},mode=0700"
        mount = ["mount", "-t", "tmpfs", "-o", options, f"sluice-bench-{os.getpid()}", str(folder)]
        self.can_fill = (
            small and os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
        )

    def fill(self) -> None:
        """Leave no room for another byte."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            for size in (64 * 1024, 4096, 1):
                with suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def free(self) -> None:
        """Take the filler away."""
        (self.folder / "filler").unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.can_fill:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class Arena:
    """Local broker (unless the system is one), link, broker of the cloud, disk; the same for every system."""

    def __init__(self, folder: Path, *, own_local_broker: bool = False, small_disk: bool = False) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.local_port, self.cloud_port = free_port(), free_port()
        self.cloud_broker = broker(folder, "cloud-broker", self.cloud_port)
        self.local_broker = None if own_local_broker else broker(folder, "local-broker", self.local_port)
        self._small_disk = small_disk
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.disk = stack.enter_context(Disk(self.folder / "disk", small=self._small_disk))
            stack.callback(self.cloud_broker.kill)
            start_broker(self.cloud_broker, self.cloud_port)
            self.link = stack.enter_context(ProxyLink(self.cloud_port))
            if self.local_broker is not None:
                stack.callback(self.local_broker.kill)
                start_broker(self.local_broker, self.local_port)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def kill_cloud_broker(self, seconds: float) -> None:
        """Kill the broker of the cloud and bring it back after a while."""
        self.cloud_broker.kill()
        time.sleep(seconds)
        start_broker(self.cloud_broker, self.cloud_port)


class Kept:
    """A process that is started again a second after it has ended, as systemd would; and watched for its memory."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.kills: list[float] = []
        self.starts: list[float] = []
        self.exits = 0
        """How often it ended without having been killed from here."""
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="bench-keep", daemon=True)
        self._killing = False

    def __enter__(self) -> Self:
        self._start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._kill_group()

    def restart(self) -> float:
        """Kill the process and wait until it was started again; returns when (monotonic, seconds)."""
        starts = len(self.starts)
        self.kill()
        while len(self.starts) == starts:
            time.sleep(0.01)
        return self.starts[-1]

    @property
    def outages(self) -> list[tuple[float, float]]:
        """When it was killed and when it was started again, for each kill."""
        return [(at, min((start for start in self.starts if start > at), default=float("inf"))) for at in self.kills]

    @property
    def resident_bytes(self) -> int:
        """What it has in memory now."""
        return resident_bytes(self.child.pid)

    def kill(self) -> None:
        """SIGKILL the process and all its children."""
        self.kills.append(time.monotonic())
        self._killing = True
        self._kill_group()

    def _kill_group(self) -> None:
        if self.child.running:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self.child.kill()

    def _keep(self) -> None:
        while not self._stop.wait(0.1):
            if self.child.running:
                self.peak_bytes = max(self.peak_bytes, resident_bytes(self.child.pid))
                continue
            self.exits += not self._killing
            self._killing = False
            if not self._stop.wait(RESTART_SECONDS):
                self._start()

    def _start(self) -> None:
        self.starts.append(time.monotonic())
        self.child.start()


def resident_bytes(pid: int) -> int:
    """Return what a process and its children have in memory now, shared pages counted for each; 0 if it is gone."""
    total = 0
    for each in [pid, *_children(pid)]:
        with suppress(OSError):
            resident = int(Path(f"/proc/{each}/statm").read_text().split()[1])
            total += resident * os.sysconf("SC_PAGE_SIZE")
    return total


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in file.read_text().split()]
    return found + [below for child in found for below in _children(child)]
