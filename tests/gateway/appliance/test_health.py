"""The soak asks the running gateway, and writes down what the agent of OS updates reads."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread

import msgspec
import pytest
import yaml
from click.testing import CliRunner
from structlog.testing import capture_logs

from gateway.appliance.health import Watch, free_memory, physical_interfaces, read_health
from gateway.appliance.places import Places
from gateway.cli import main
from gateway.control import ControlServer
from gateway.osupdate.surroundings import read_health as read_word
from gateway.report import GatewayStatus, OutboxReport, VaultReport
from gateway.wire.messages import PipelineStatus
from tests.gateway.appliance.claims import NOW_NS, device
from tests.simulators.waiting import wait_for


@dataclass
class Running:
    """A gateway as its control socket shows it; knobs: what it answers."""

    path: Path
    inferences: int = 0
    gains: int = 1
    ready: bool = True
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def status(self) -> GatewayStatus:
        self.inferences += self.gains
        door = PipelineStatus(
            pipeline="door", state="running", source_state="streaming", at="", inferences=self.inferences
        )
        return GatewayStatus(
            gateway="dock-7",
            version="1",
            at="",
            uptime_seconds=1,
            pid=42,
            pipelines=[door],
            outbox=OutboxReport(state="open", epoch="e"),
            vault=VaultReport(level="tpm", ready=self.ready),
        )


@dataclass
class Clock:
    """Time that passes when somebody waits."""

    now: float = 0.0
    then: Callable[[], None] = lambda: None

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.then()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    places = device(tmp_path)
    config = {
        "gateway": {"id": "dock-7", "state_directory": str(places.state), "runtime_directory": str(places.runtime)},
        "vault": {"level": "software"},
        "sources": {"machine": {"type": "health"}},
        "pipelines": {"door": {"source": "machine", "model": "process-anomaly"}},
    }
    places.config.write_text(yaml.safe_dump(config))
    return places


@pytest.fixture
def gateway(places: Places) -> Iterator[Running]:
    running = Running(places.runtime / "gateway.sock")
    server = ControlServer(running.path, {"status": running.status})
    task = running.loop.create_task(server.run())
    thread = Thread(target=running.loop.run_forever)
    thread.start()
    wait_for(running.path.exists)
    yield running
    running.loop.call_soon_threadsafe(task.cancel)
    wait_for(task.done)
    running.loop.call_soon_threadsafe(running.loop.stop)
    thread.join()
    running.loop.close()


def watch(places: Places, clock: Clock | None = None) -> Watch:
    clock = clock or Clock()
    return Watch(
        places=places,
        monotonic=lambda: clock.now,
        now_ns=lambda: NOW_NS,
        pause=clock.pause,
        restarts=lambda: 0,
    )


def test_a_gateway_that_moves_is_healthy_and_that_is_written_down(places: Places, gateway: Running) -> None:
    report = watch(places).soak(30, 60)
    assert (report.verdict, report.healthy, report.reasons) == ("healthy", True, [])
    assert report.image.version == "2026.01"
    assert report.was is not None
    assert report.was.progressing == ["door"]
    assert read_health(places) == report
    assert places.health.stat().st_mode & 0o777 == 0o600


def test_a_pipeline_that_stands_still_after_an_update_is_unhealthy_and_the_measure_stays(
    places: Places, gateway: Running
) -> None:
    was = watch(places).soak(30, 60).was
    gateway.gains = 0
    report = watch(places).soak(30, 60)
    assert report.verdict == "unhealthy"
    assert "it did before the update" in report.reasons[0]
    assert report.was == was


def test_a_vault_that_no_longer_opens_is_unhealthy(places: Places, gateway: Running) -> None:
    gateway.ready = False
    assert "the vault does not open" in watch(places).soak(10, 60).reasons[0]


def test_no_gateway_at_all_is_unhealthy_after_the_time_to_start(places: Places) -> None:
    clock = Clock()
    report = watch(places, clock).soak(30, 60)
    assert not report.healthy
    assert "no gateway is running" in report.reasons[0]
    assert clock.now == pytest.approx(60, abs=3)


def test_a_device_that_is_not_provisioned_is_healthy_as_it_is(tmp_path: Path) -> None:
    report = watch(device(tmp_path)).soak(30, 60)
    assert (report.verdict, report.healthy) == ("unprovisioned", True)


def test_a_configuration_that_the_new_image_refuses_needs_no_soak(places: Places) -> None:
    places.config.write_text("gateway: {id: dock-7}\nvault: {level: software}\nsources: {}\npipelines: {}\nnew: 1\n")
    clock = Clock()
    report = watch(places, clock).soak(30, 60)
    assert "gateway.yaml:5:1: error: new: unknown key" in report.reasons[0]
    assert clock.now == 0


def test_the_last_word_is_readable_by_other_programs(places: Places, gateway: Running) -> None:
    watch(places).soak(1, 60)
    plain = msgspec.json.decode(places.health.read_bytes())
    assert plain["healthy"] is True
    assert plain["boot_id"]
    assert plain["image"]["target"] == "uefi-amd64"


def test_the_boot_that_failed_is_remembered_by_the_old_image(places: Places, gateway: Running, tmp_path: Path) -> None:
    def boot(name: str) -> Path:
        proc = tmp_path / name
        (proc / "sys/kernel/random").mkdir(parents=True)
        (proc / "sys/kernel/random/boot_id").write_text(f"{name}\n")
        return proc

    gateway.ready = False
    unhealthy = watch(places)
    replace(unhealthy, proc=boot("new")).soak(1, 60)
    gateway.ready = True
    report = replace(unhealthy, proc=boot("old")).soak(1, 60)
    assert report.healthy
    assert report.failed is not None
    assert (report.failed.boot_id, report.failed.image) == ("new", "2026.01")
    assert "the vault does not open" in report.failed.reasons[0]
    assert replace(unhealthy, proc=boot("later")).soak(1, 60).failed == report.failed


def test_a_damaged_report_is_as_good_as_none(places: Places, gateway: Running) -> None:
    places.health.write_text("{")
    assert read_health(places) is None
    assert watch(places).soak(1, 60).healthy


def test_memory_and_interfaces_are_read_from_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  250 kB\n")
    assert free_memory(tmp_path) == 0.25
    assert free_memory(tmp_path / "nowhere") == 1.0
    (tmp_path / "class/net/en0/device").mkdir(parents=True)
    (tmp_path / "class/net/lo").mkdir(parents=True)
    assert physical_interfaces(tmp_path) == ("en0",)


def full(places: Places) -> None:
    """Let the disk refuse the report, whoever asks: what is written first is in the way."""
    (places.state / f".{places.health.name}.part").mkdir()


def test_a_disk_that_takes_no_report_is_no_reason_against_the_image(places: Places, gateway: Running) -> None:
    full(places)
    report = watch(places).soak(30, 60)
    assert (report.verdict, report.healthy) == ("healthy", True)
    assert "until the next boot only" in report.notes[-1]
    assert not places.health.exists()
    kept = places.health_until_reboot
    assert read_health(places) == report, "who asks in this boot finds it"
    found = read_word(kept, places.health)
    assert found is not None
    assert (found.verdict, found.at) == ("healthy", report.at)
    (places.state / f".{places.health.name}.part").rmdir()
    again = watch(places).soak(30, 60)
    assert again.notes == []
    assert (read_health(places), kept.exists()) == (again, False), "one word, on the disk again"


def test_an_unhealthy_image_stays_so_on_a_full_disk(places: Places, gateway: Running) -> None:
    watch(places).soak(30, 60)
    full(places)
    gateway.gains = 0
    report = watch(places).soak(30, 60)
    assert (report.verdict, report.healthy) == ("unhealthy", False)
    found = read_word(places.health_until_reboot, places.health)
    assert found is not None
    assert not found.healthy, "and not the word of before, which lies on the disk"


def test_nowhere_to_write_is_told_and_decides_nothing(places: Places, gateway: Running) -> None:
    full(places)
    places.health_until_reboot.parent.write_text("no directory")
    with capture_logs() as logs:
        assert watch(places).soak(30, 60).healthy
    assert [each["event"] for each in logs][-2:] == ["health_report_not_kept", "health_report_lost"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_the_command_says_healthy_on_a_disk_without_a_byte_left(places: Places, gateway: Running) -> None:
    places.config.unlink()  # nothing to judge: what is left to fail is the writing
    disk = places.state
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        with contextlib.suppress(OSError), (disk / "fill").open("wb", buffering=0) as fill:
            while True:
                fill.write(b"\0" * 4096)
        words = ["appliance", "health", "--soak", "0", "--start-within", "0", "--root", str(places.state.parents[1])]
        said = CliRunner().invoke(main, words)
        assert said.exit_code == 0, said.output
        assert "No space left on device" in said.output
    finally:
        subprocess.run(["umount", str(disk)], check=True)
