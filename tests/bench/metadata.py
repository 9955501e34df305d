"""What it costs a device to look whether there is something new: the real registry over HTTPS, on loopback."""

import asyncio
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry

from cloud_bridge.config import Config
from cloud_bridge.config import Registry as RegistrySettings
from cloud_bridge.registry.component import RegistryComponent
from gateway.config import Ota
from gateway.ota.fetch import Repository
from gateway.ota.fetch_budget import Unmetered
from gateway.ota.ways_https import HttpsWay
from hil.loopback.children import free_port, is_listening
from tests.bench.figures import percentiles
from tests.bench.table import row
from tests.cloud_bridge.registry.kit import Site, release

ROUNDS: Final = 200
AIM_MS: Final = 50.0
RELEASES: Final = 20


def refresh(rounds: int = ROUNDS) -> dict[str, Any]:
    """Refresh again and again over one connection: nothing is new; then something is each time; then from nothing."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name, served(Path(name)) as (site, url, context):
        directory = Path(name)
        root_file = directory / "root.json"
        root_file.write_bytes(site.registry.read("metadata/1.root.json"))
        device = made(directory / "device", root_file, url, context)
        device.refresh()
        unchanged = [timed(device) for _ in range(rounds)]
        changed = []
        for _ in range(max(1, rounds // 10)):
            site.registry.refresh(targets=True)
            changed.append(timed(device))
        first = [timed(made(directory / f"device{at}", root_file, url, context)) for at in range(max(1, rounds // 10))]
    same, new, begun = percentiles(unchanged), percentiles(changed), percentiles(first)
    return {
        "rows": [
            row(
                f"metadata refresh over HTTPS on loopback, {RELEASES} releases, nothing new, p95",
                f"{same['p95']:.1f} ms",
                aim=f"≤ {AIM_MS:g} ms",
                met=same["p95"] <= AIM_MS,
            ),
            row(
                "metadata refresh with a new list of releases to verify, p50",
                f"{new['p50']:.1f} ms",
                aim=f"≤ {AIM_MS:g} ms",
                met=new["p50"] <= AIM_MS,
            ),
        ],
        "unchanged_ms": same,
        "changed_ms": new,
        "first_ms": begun,
    }


def timed(device: Repository) -> float:
    """Return how long one refresh takes, in milliseconds."""
    began = time.perf_counter()
    device.refresh()
    return (time.perf_counter() - began) * 1e3


def made(state: Path, root_file: Path, url: str, context: ssl.SSLContext) -> Repository:
    """Make a device that has seen nothing."""
    return Repository(
        Ota(root_file=root_file, hardware="test-board"),
        state,
        HttpsWay(url, lambda: context, monotonic_ns=time.monotonic_ns),
        meter=Unmetered(),
        now_ns=time.time_ns,
        monotonic_ns=time.monotonic_ns,
    )


@contextmanager
def served(directory: Path) -> Iterator[tuple[Site, str, ssl.SSLContext]]:
    """Serve a registry with some releases, in a thread of this process."""
    site = Site(directory / "site").begin()
    for number in range(RELEASES):
        site.publish(release(directory, f"1.0.{number}"))
    port = free_port()
    settings = RegistrySettings(url=site.settings.url, keys=site.settings.keys, port=port)
    config = Config(identity=site.identities.settings, registry=settings)
    component = RegistryComponent(config, CollectorRegistry(), site.clock)
    thread = threading.Thread(target=lambda: asyncio.run(component.run()), name="bench-registry", daemon=True)
    thread.start()
    context = ssl.create_default_context(cadata=site.identities.ca.services_pem.decode())
    url = f"https://localhost:{port}"
    try:
        deadline = time.monotonic() + 20
        while not is_listening(port):
            assert time.monotonic() < deadline, "the registry does not listen"
            time.sleep(0.02)
        yield site, url, context
    finally:
        component.stop()
        thread.join(20)
        site.db.close()
