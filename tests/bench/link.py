"""Links that can be cut: our own proxy, which needs no rights, or a network namespace whose packets vanish."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from hil.loopback.children import RigError, free_port

ROOT = Path(__file__).resolve().parents[2]


class Link(Protocol):
    """The way to the broker of the cloud."""

    kind: str
    host: str
    port: int

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return what starts a program on the device's side of the link."""

    def cut(self) -> None:
        """Let nothing through, silently."""

    def heal(self) -> None:
        """Let everything through again."""


class ProxyLink:
    """A proxy in a process of its own, so that it takes nothing of what is measured in this one."""

    kind = "proxy"
    host = "127.0.0.1"

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._process = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "--",
                sys.executable,
                "-m",
                "tests.bench.proxy",
                str(self.port),
                str(target),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._expect("ready")

    def command(self, argv: Sequence[str]) -> list[str]:
        return list(argv)

    def cut(self) -> None:
        self._say("cut")

    def heal(self) -> None:
        self._say("heal")

    def _say(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        self._expect(command)

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != word:
            raise RigError(f"the proxy of the link said {said!r} instead of {word!r}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


class NamespaceLink:
    """A veth pair into a network namespace; while it is cut, each end throws away what arrives.

    Nothing tells TCP: packets are sent again at growing intervals, which is what a person who pulls a cable far away
    sees. Dropping where packets *arrive* matters: a local drop on the way out is told to the sender at once.
    """

    kind = "namespace"

    def __init__(self, port: int) -> None:
        """Needs root. `port` is that of the broker, which must listen on `host`."""
        number = os.getpid() % 16_000
        self.port = port
        self._name = f"sluice-bench-{os.getpid()}"
        self._here, self._there = f"sb{os.getpid()}h", f"sb{os.getpid()}d"
        self._table = f"sluice_bench_{os.getpid()}"
        # 198.18.0.0/15 is set aside for benchmarks of network devices (RFC 2544).
        network = [198, 18, number // 64, number % 64 * 4]
        self.host = ".".join(map(str, [*network[:3], network[3] + 1]))
        device = ".".join(map(str, [*network[:3], network[3] + 2]))
        try:
            _run("ip", "netns", "add", self._name)
            _run("ip", "link", "add", self._here, "type", "veth", "peer", "name", self._there, "netns", self._name)
            _run("ip", "address", "add", f"{self.host}/30", "dev", self._here)
            _run("ip", "link", "set", self._here, "up")
            _run("ip", "-n", self._name, "address", "add", f"{device}/30", "dev", self._there)
            _run("ip", "-n", self._name, "link", "set", self._there, "up")
            _run("ip", "-n", self._name, "link", "set", "lo", "up")
        except RigError:
            self._remove()
            raise

    def command(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self._name, *argv]

    def cut(self) -> None:
        self._filter([], self._here)
        self._filter(["ip", "netns", "exec", self._name], self._there)

    def heal(self) -> None:
        _run("nft", "delete", "table", "inet", self._table)
        _run("ip", "netns", "exec", self._name, "nft", "delete", "table", "inet", self._table)

    def _filter(self, where: list[str], device: str) -> None:
        _run(
            *where,
            "nft",
            f"add table inet {self._table}; "
            f"add chain inet {self._table} arriving {{ type filter hook prerouting priority -300; }}; "
            f"add rule inet {self._table} arriving iifname {device} drop",
        )

    def _remove(self) -> None:
        for command in (
            ["nft", "delete", "table", "inet", self._table],
            ["ip", "link", "delete", self._here],
            ["ip", "netns", "delete", self._name],
        ):
            subprocess.run(command, check=False, capture_output=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()


def namespaces_work() -> bool:
    """Tell whether this user may make network namespaces, and the tools are there."""
    return os.geteuid() == 0 and all(shutil.which(tool) for tool in ("ip", "nft"))


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RigError(f"{' '.join(command)}: {done.stderr.strip()}")
