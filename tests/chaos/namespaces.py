"""Three hosts and a router on one machine: network namespaces joined by veth pairs.

Everything is named after the process that made it, and gone when the block ends; what a killed run has left behind is
removed by the next one. Nothing in them is connected to the machine's own network, so the addresses are always the
same and ports never clash.
"""

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

Place = Literal["device", "broker", "bridge"]
PLACES: Final[tuple[Place, ...]] = ("device", "broker", "bridge")

T = TypeVar("T")

_CLONE_NEWNET: Final = 0x40000000
_PREFIX: Final = "slu"
_RUN: Final = Path("/run/netns")


def _within(namespace: str) -> tuple[str, ...]:
    """Return what stands before a command there; `ip netns exec` would give it a copy of all mounts, too.

    While such a copy is there, a disk that another experiment has unmounted is still in use.
    """
    return ("nsenter", f"--net={_RUN / namespace}", "--")


class Network:
    """`device`, `broker` and `bridge`, each with a link of its own to a router that forwards between them."""

    def __init__(self) -> None:
        self._own = f"{_PREFIX}{os.getpid()}"

    def __enter__(self) -> Self:
        sweep()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    @property
    def router(self) -> str:
        """The namespace between the others."""
        return f"{self._own}-router"

    def namespace(self, place: Place) -> str:
        """Return the name of a namespace."""
        return f"{self._own}-{place}"

    def address(self, place: Place) -> str:
        """Return the address of a place."""
        return f"10.99.{PLACES.index(place) + 1}.2"

    def gateway_of(self, place: Place) -> str:
        """Return the router's address on the link to a place."""
        return f"10.99.{PLACES.index(place) + 1}.1"

    def link(self, place: Place) -> str:
        """Return the name of the router's end of the link to a place; the other end is called `eth0`."""
        return f"to-{place}"

    def prefix(self, place: Place) -> list[str]:
        """Return what runs a command at a place."""
        return [*_within(self.namespace(place))]

    def run(self, place: Place | Literal["router"], *command: str, check: bool = True) -> None:
        """Run a command at a place.

        Raises:
            RuntimeError: it failed; what it said is in the error.
        """
        namespace = self.router if place == "router" else self.namespace(place)
        _run(*_within(namespace), *command, check=check)

    def ask(self, command: str) -> str:
        """Run a command in the router and return what it says."""
        return _run(*_within(self.router), *command.split())

    def set(self, place: Place, settings: Mapping[str, str]) -> None:
        """Set parameters of IPv4 at a place, by their names below `net.ipv4`."""
        self.within(place, lambda: _set(settings))

    def within(self, place: Place, function: Callable[[], T]) -> T:
        """Call a function whose sockets belong to a place."""
        return within(self.namespace(place), function)

    def _build(self) -> None:
        for name in (self.router, *map(self.namespace, PLACES)):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        for place in PLACES:
            namespace, link = self.namespace(place), self.link(place)
            _run(
                *("ip", "-n", self.router, "link", "add", link, "type", "veth"),
                *("peer", "name", "eth0", "netns", namespace),
            )
            _run("ip", "-n", self.router, "addr", "add", f"{self.gateway_of(place)}/24", "dev", link)
            _run("ip", "-n", self.router, "link", "set", link, "up")
            _run("ip", "-n", namespace, "addr", "add", f"{self.address(place)}/24", "dev", "eth0")
            _run("ip", "-n", namespace, "link", "set", "eth0", "up")
            _run("ip", "-n", namespace, "route", "add", "default", "via", self.gateway_of(place))
        settings = {"ip_forward": "1", "conf/all/rp_filter": "0", "conf/default/rp_filter": "0"}
        within(self.router, lambda: _set(settings))

    def _remove(self) -> None:
        for name in (self.router, *map(self.namespace, PLACES)):
            _run("ip", "netns", "del", name, check=False)


def missing() -> str:
    """Say why there can be no namespaces here; "" if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [tool for tool in ("ip", "nft", "tc") if shutil.which(tool) is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install iproute2 nftables"
    probe = f"{_PREFIX}{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return "" if made.returncode == 0 else f"no network namespaces here: {made.stderr.decode().strip()}"


def sweep() -> None:
    """Remove the namespaces of runs that were killed: those named after a process that is no more."""
    for file in _RUN.glob(f"{_PREFIX}[0-9]*-*") if _RUN.exists() else ():
        pid = file.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            _run("ip", "netns", "del", file.name, check=False)


def within(namespace: str, function: Callable[[], T]) -> T:
    """Call a function in a thread that has moved into a namespace: sockets made there belong to it.

    Raises:
        OSError: the namespace cannot be entered.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            enter(namespace)
            results.append(function())
        except BaseException as error:  # noqa: BLE001  # carried over to the caller, whatever it is
            errors.append(error)

    thread = threading.Thread(target=run, name=f"within-{namespace}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def enter(namespace: str) -> None:
    """Move the calling thread into a namespace, for good.

    Raises:
        OSError: it cannot be entered.
    """
    descriptor = os.open(_RUN / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"cannot enter {namespace}: {os.strerror(code)}")
    finally:
        os.close(descriptor)


def _set(settings: Mapping[str, str]) -> None:
    """Write settings of IPv4; /proc/sys/net is the one of the thread's own namespace."""
    for name, value in settings.items():
        Path(f"/proc/sys/net/ipv4/{name}").write_text(value)


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}: {said}")
    return done.stdout
