"""Full disks, kills, two gateways on one state: what was handed to the outbox arrives once, whatever happens."""

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.loopback.children import Child
from hil.loopback.rig import Rig, eventually
from hil.loopback.tally import tally_of
from tests.e2e.conftest import Site, parts
from tests.e2e.flow import arrives, goes_on, logged, settle, status_of, statuses, waits

MIB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "sluice-test", str(folder)]
    if shutil.which("mount") is None or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs (root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Write a file until there is no room for another byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (64 * 1024, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


def on(disk: Path, site: Site) -> Rig:
    """Make a rig whose gateway keeps its state on a disk, and has much to tell."""
    sources, pipelines = parts(disk.parent)
    motor = pipelines["motor"]
    motor["rules"] = [{**rule, "update_seconds": 0.01} for rule in motor["rules"]]
    rig = site(
        sources={"loud": {**sources["loud"], "speed": 25.0}},
        pipelines={"motor": motor},
        gateway={
            "gateway": {"state_directory": str(disk / "state")},
            "outbox": {"ballast_bytes": 2 * MIB},
            "cloud": {"drain_seconds": 3.0},
        },
    )
    rig.use_state(disk / "state")
    return rig


def test_a_full_disk_stops_no_inference_and_loses_nothing_that_was_stored(site: Site, small_disk: Path) -> None:
    rig = on(small_disk, site)
    rig.start_broker()
    rig.start_gateway()
    waits(rig, 20)
    filler = fill(small_disk)
    eventually(lambda: bool(status_of(rig)["outbox"]["disk_full"]), "the disk is full")
    for pipeline in ("motor", "machine"):
        goes_on(rig, pipeline, 20)
        assert statuses(rig)[pipeline]["state"] == "running"
    filler.unlink()
    eventually(lambda: not status_of(rig)["outbox"]["disk_full"], "the disk has room again")
    rig.start_bridge()
    arrives(rig)
    assert len(logged(rig, "disk_full_began")) == len(logged(rig, "disk_full_ended")) == 1
    assert rig.gateway.stop() == 0
    eventually(lambda: tally_of(rig).lost == 0, "everything arrived or was given up by name")
    counts = tally_of(rig)
    assert counts.waiting == counts.duplicates == 0
    assert logged(rig, "outbox_failed") == []


def test_a_gateway_killed_and_started_on_a_full_disk_runs_and_keeps_what_was_stored(
    site: Site, small_disk: Path
) -> None:
    rig = on(small_disk, site)
    rig.start_broker()
    rig.start_gateway()
    waits(rig, 20)
    filler = fill(small_disk)
    eventually(lambda: bool(status_of(rig)["outbox"]["disk_full"]), "the disk is full")
    rig.gateway.kill()
    filler.unlink()
    filler = fill(small_disk)
    rig.start_gateway()
    goes_on(rig, "motor", 20)
    assert rig.gateway.stop() == 0
    filler.unlink()
    rig.start_bridge()
    rig.start_gateway()
    arrives(rig)
    assert rig.gateway.stop() == 0
    eventually(lambda: tally_of(rig).lost == 0, "everything arrived or was given up by name")
    assert tally_of(rig).duplicates == 0
    assert "Traceback" not in rig.gateway.log.read_text()


def test_a_gateway_with_a_damaged_store_on_a_full_disk_starts_and_delivers_once_there_is_room(
    site: Site, small_disk: Path
) -> None:
    rig = on(small_disk, site)
    rig.start_broker()
    rig.start_bridge()
    rig.start_gateway()
    waits(rig, 20)
    rig.gateway.kill()
    store = rig.state_directory / "outbox.db"
    with store.open("r+b") as file:
        file.write(b"garbage garbage")
    store.with_name("outbox.db.ballast").unlink()
    filler = fill(small_disk)
    rig.start_gateway()
    eventually(lambda: status_of(rig)["outbox"]["state"] == "failed", "there is no room for a store")
    eventually(lambda: statuses(rig)["motor"]["state"] == "running", "inference begins")
    filler.unlink()
    eventually(lambda: status_of(rig)["outbox"]["state"] == "open", "the store was made", 30.0)
    goes_on(rig, "motor", 20)
    assert len(logged(rig, "store_quarantined")) == len(logged(rig, "outbox_failed")) == 1
    arrives(rig)
    assert rig.gateway.stop() == 0
    assert "Traceback" not in rig.gateway.log.read_text()


def test_a_second_gateway_on_the_same_state_refuses_and_leaves_the_first_alone(site: Site, tmp_path: Path) -> None:
    rig = site()
    rig.start()
    for number, outbox in enumerate((None, str(tmp_path / "elsewhere.db"))):
        rig.gateway_settings["outbox"] = {"file": outbox}
        rig.write()
        second = Child("second", rig.gateway.command, tmp_path / f"second-{number}.log")
        second.start()
        eventually(lambda second=second: not second.running, "the second gateway ends", 15.0)  # type: ignore[misc]
        assert second.stop() == 1
        said = second.tail()
        assert "another gateway" in said
        assert "stop that one first" in said
        assert "Traceback" not in said
        goes_on(rig, "motor")
    settle(rig)


def test_a_stop_without_a_cloud_is_in_time_and_keeps_the_backlog(site: Site) -> None:
    rig = site(gateway={"cloud": {"drain_seconds": 1.0}})
    rig.start_gateway()
    waits(rig, 20)
    began = time.monotonic()
    assert rig.gateway.stop(11.0) == 0
    assert time.monotonic() - began < 1.0 + 10.0
    assert not rig.last_run()["drained"]
    assert tally_of(rig).waiting == tally_of(rig).enqueued >= 20
    rig.start()
    arrives(rig)
    rig.gateway.stop()
    eventually(lambda: tally_of(rig).lost == 0, "everything arrived")
    assert tally_of(rig).duplicates == 0


def test_a_stop_at_any_moment_of_the_first_start_is_in_time(site: Site) -> None:
    rig = site()
    rig.start_broker()
    for seconds in (0.0, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2):
        shutil.rmtree(rig.state_directory)  # so that the vault is made, and the weights are sealed, meanwhile
        rig.gateway.log.unlink(missing_ok=True)
        rig.gateway.start()
        rig.gateway.wait_until(lambda: "gateway_started" in rig.gateway.tail(), "the gateway starts")
        end = time.monotonic() + seconds
        eventually(lambda end=end: time.monotonic() >= end, "the moment has come")  # type: ignore[misc]
        assert rig.gateway.stop() == 0
        assert logged(rig, "gateway_stopped") != []


def test_a_gateway_without_pipelines_stops_cleanly(site: Site) -> None:
    rig = site()
    rig.gateway_settings |= {"sources": {}, "pipelines": {}}
    rig.write()
    rig.start_gateway()
    assert rig.gateway.stop() == 0
    assert len(logged(rig, "gateway_stopped")) == 1


def test_five_kills_at_random_times_lose_nothing_and_store_nothing_twice(site: Site) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    rig = site()
    rig.start()
    for _ in range(5):
        waits(rig, tally_of(rig).enqueued + 1)
        end = time.monotonic() + chance.uniform(0.0, 0.8)
        eventually(lambda end=end: time.monotonic() >= end, "the moment has come")  # type: ignore[misc]
        rig.gateway.kill()
        rig.start_gateway()
    arrives(rig)
    settle(rig)


def test_a_taken_metrics_port_is_told_and_does_not_keep_the_gateway_from_stopping(site: Site) -> None:
    rig = site()
    with socket.create_server(("127.0.0.1", rig.ports.metrics)):
        rig.start_gateway()
        eventually(lambda: "metrics" in (rig.gateway_status() or {}).get("components", {}), "the port is told as taken")
        assert rig.gateway.stop(45.0) == 0
    assert rig.gateway.log.stat().st_size < 200_000, "the log was flooded"
