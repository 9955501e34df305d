"""The whole program as a process."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_bridge.app import Bridge
from cloud_bridge.config import Broker, Config
from cloud_bridge.config import Store as StoreSettings
from cloud_bridge.errors import ConfigError, StoreInUseError
from tests.simulators.bridge_process import BridgeProcess
from tests.simulators.device import Device
from tests.simulators.mosquitto import BINARY, Mosquitto
from tests.simulators.waiting import wait_for

needs_mosquitto = pytest.mark.skipif(BINARY is None, reason="mosquitto is not installed: apt-get install mosquitto")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "cloud_bridge", *arguments]
    return subprocess.run(line, check=False, capture_output=True, text=True, cwd=ROOT, timeout=60)


@needs_mosquitto
@pytest.mark.net
def test_commands_that_write_ask_the_running_bridge(tmp_path: Path, broker: Mosquitto) -> None:
    bridge = BridgeProcess(tmp_path, broker.url)
    bridge.start()
    try:
        with Device(broker.port) as device:
            device.put("event", 50)
            device.publish("sluice/v1/dock/records/event", b"junk")
            wait_for(lambda: device.waiting == 0, seconds=20)
        file = tmp_path / "x.ndjson"
        assert command("export", "--store", bridge.store, "--output", str(file)).returncode == 0
        file.write_text(file.read_text().replace('"gateway":"dock"', '"gateway":"gate"') + "rubbish\n")
        imported = command("import", str(file), "--allow-partial", "--store", bridge.store, "--json")
        assert imported.returncode == 3, imported.stderr
        assert json.loads(imported.stdout)["imported"] == 50
        assert "line 53" in imported.stderr
        assert command("deadletters", "discard", "--all", "--only-copies", "--store", bridge.store).returncode == 0
        status = json.loads(command("status", "--store", bridge.store, "--json").stdout)
        assert (status["records"], status["dead_letters"]) == (100, {})
        second = command("run", "--store", bridge.store, "--broker", broker.url)
        assert second.returncode == 1
        assert "written by another process" in second.stderr
    finally:
        assert bridge.stop() == 0
    assert not (tmp_path / "bridge.sock").exists()


@needs_mosquitto
@pytest.mark.net
def test_the_service_manager_hears_of_start_life_and_end_and_http_answers(tmp_path: Path, broker: Mosquitto) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, socket.socket() as probe:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        file = tmp_path / "bridge.yaml"
        file.write_text(
            f"brokers: [{{url: '{broker.url}'}}]\nstore: {{url: 'sqlite:///{tmp_path}/deep/er/bridge.db'}}\n"
            f"console: {{port: {port}}}\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "cloud_bridge", "run", "--config", str(file)],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"},
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        try:
            told = {manager.recv(100) for _ in range(4)}
            assert told == {b"READY=1", b"WATCHDOG=1"}
            wait_for(lambda: b"bridge_broker_connected" in _get(port, "/metrics"), seconds=10)
            process.send_signal(signal.SIGTERM)
            while manager.recv(100) != b"STOPPING=1":
                pass
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()


def _get(port: int, path: str) -> bytes:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            content: bytes = answer.read()
            return content
    except OSError:
        return b""


def test_a_bridge_starts_without_broker_and_stops_at_once(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/bridge.db"
    process = subprocess.Popen(
        [sys.executable, "-m", "cloud_bridge", "run", "--broker", "mqtt://127.0.0.1:1", "--store", store],
        cwd=ROOT,
        stderr=(tmp_path / "log").open("wb"),
    )
    try:
        wait_for(lambda: "broker_unreachable" in (tmp_path / "log").read_text(), seconds=20)
        process.terminate()
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "log").read_text().count("broker_unreachable") == 1


async def test_without_a_broker_there_is_nothing_to_do() -> None:
    with pytest.raises(ConfigError, match="--broker"):
        Bridge(Config(), {})


async def test_a_mistake_of_the_configuration_lets_go_of_the_store(tmp_path: Path) -> None:
    store = StoreSettings(url=f"sqlite:///{tmp_path}/bridge.db")
    bad = Broker(url="mqtts://broker.example", ca_file=tmp_path / "none")
    for _ in range(2):
        with pytest.raises(ConfigError, match="certificates"):
            Bridge(Config(brokers=[bad], store=store), {})
    good = Bridge(Config(brokers=[Broker(url="mqtt://127.0.0.1:1")], store=store), {})
    with pytest.raises(StoreInUseError):
        Bridge(Config(brokers=[Broker(url="mqtt://127.0.0.1:1")], store=store), {})
    good._store.close()


@needs_mosquitto
@pytest.mark.net
def test_records_can_be_followed_while_they_come(tmp_path: Path, broker: Mosquitto) -> None:
    bridge = BridgeProcess(tmp_path, broker.url)
    bridge.start()
    line = [
        sys.executable,
        "-m",
        "cloud_bridge",
        "records",
        "--store",
        bridge.store,
        "--follow",
        "--json",
        "--limit",
        "0",
    ]
    with Device(broker.port) as device:
        device.put("event", 3)
        wait_for(lambda: device.waiting == 0, seconds=20)
        follower = subprocess.Popen(line, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        try:
            assert follower.stdout is not None
            # It shows what comes after it has looked for the first time, so go on until it has.
            wait_for(lambda: _put_and_look(device, follower), seconds=20, what="the follower shows something")
            assert json.loads(follower.stdout.readline())["seq"] > 3
        finally:
            follower.send_signal(signal.SIGINT)
            assert follower.wait(10) == 0
            bridge.stop()


def _put_and_look(device: Device, follower: subprocess.Popen[bytes]) -> bool:
    device.put("event", 1)
    assert follower.stdout is not None
    ready, _, _ = select.select([follower.stdout], [], [], 0.2)
    return bool(ready)


@needs_mosquitto
@pytest.mark.net
@pytest.mark.parametrize("guarded", [True, False])
def test_a_second_bridge_with_a_store_of_its_own_takes_nothing_from_the_first(
    tmp_path: Path, broker: Mosquitto, *, guarded: bool
) -> None:
    first = BridgeProcess(tmp_path, broker.url)
    first.start()
    other = tmp_path / "other"
    other.mkdir()
    # The control is told to take over: that is what it was like for everybody before.
    second = BridgeProcess(other, broker.url, client_id="two", options=() if guarded else ("--take-over",))
    try:
        with Device(broker.port) as device:
            device.put("event", 100)
            wait_for(lambda: device.waiting == 0, seconds=20)
            second.start(wait=not guarded)
            if guarded:
                wait_for(lambda: "another store takes the records" in second.log.read_text(), seconds=20)
            for _ in range(20):
                device.put("event", 50)
                wait_for(lambda: device.waiting == 0, seconds=20)
        assert (len(first.keys()) == 1100) == guarded
        assert bool(second.keys()) != guarded
    finally:
        second.stop()
        assert first.stop() == 0
