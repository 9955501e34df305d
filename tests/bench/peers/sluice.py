"""Sluice itself: the gateway with an MQTT leaf, and its cloud bridge with SQLite as the far end."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from gateway.version import program_version
from hil.loopback.children import Child
from hil.loopback.rig import Rig
from tests.bench.echo import echo_pipeline, write_echo
from tests.bench.peers.arena import Arena, resident_bytes
from tests.bench.peers.readings import TOPIC
from tests.bench.peers.systems import System
from tests.bench.watching import given_up, records_after, stored_twice

_LOOK_SECONDS = 0.02


class Sluice(System):
    """Every reading goes the whole way: window of one, interpreter, rule, durable outbox, batch, bridge, commit.

    The settings are the defaults. Beyond what the peers do it runs a model on each reading, and shows each event on the
    local broker too.
    """

    name: ClassVar[str] = "sluice"
    title: ClassVar[str] = "Sluice"

    def __init__(self, arena: Arena) -> None:
        super().__init__(arena)
        source = {"type": "mqtt", "topic": TOPIC, "fields": ["n"], "rate_hz": 200.0, "silent_after_seconds": 3600.0}
        self._rig = Rig(
            arena.folder / "rig",
            {"press": source},
            {"press": echo_pipeline("press")},
            gateway={
                "gateway": {"state_directory": str(arena.disk.folder / "state")},
                "models": {"directories": [str(write_echo(arena.folder / "models"))]},
                "cloud": {"brokers": [{"url": f"mqtt://127.0.0.1:{arena.link.port}"}]},
                "local": {"broker": {"url": f"mqtt://127.0.0.1:{arena.local_port}"}},
            },
            bridge={"brokers": [{"url": f"mqtt://127.0.0.1:{arena.cloud_port}"}]},
        )
        self._stop = threading.Event()

    @classmethod
    def version(cls) -> str:
        return program_version()

    def gateway(self) -> Child:
        return self._rig.gateway

    def cloud(self, stack: ExitStack) -> None:
        stack.callback(self._rig.bridge.kill)
        self._rig.start_bridge()
        watcher = threading.Thread(target=self._watch, name="bench-arrivals", daemon=True)
        watcher.start()
        stack.callback(watcher.join)
        stack.callback(self._stop.set)

    def _watch(self) -> None:
        """Count what is committed in the bridge's store, as another process sees it."""
        behind_ns = time.time_ns() - time.monotonic_ns()  # of the machine's clock: records carry its time
        row = 0
        while not self._stop.wait(_LOOK_SECONDS):
            row, found = records_after(self._database, row)
            self.arrivals.add([number for number, _ in found], [(at_ns - behind_ns) / 1e9 for _, at_ns in found])

    @property
    def _database(self) -> Path:
        return self._rig.directory / "bridge" / "bridge.db"

    def cloud_bytes(self) -> int:
        """Return what the bridge has in memory now."""
        return resident_bytes(self._rig.bridge.pid)

    def stored_twice(self) -> int:
        """Return how many records the bridge has stored twice under one number."""
        return stored_twice(self._database)

    def given_up(self) -> int:
        """Return how many events the gateway has evicted, and said so, as on a full disk."""
        return given_up(self._database, "event")
