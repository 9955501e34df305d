"""Scripts of the image's own, run on this machine."""

import configparser
import os
import shutil
import socket
import subprocess
import threading
import tomllib
from pathlib import Path

import pytest

from hil.loopback.children import free_port
from image.builder.boards import load, names, size
from tests.simulators.waiting import wait_for

REPO = Path(__file__).parents[2]
MOSQUITTO = REPO / "image/overlay/usr/lib/sluice/mosquitto"

needs_mosquitto = pytest.mark.skipif(
    not Path("/usr/sbin/mosquitto").exists(), reason="mosquitto is not installed: apt-get install mosquitto"
)


class LocalBroker:
    """The image's broker, and what systemd would call around it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.site = folder / "site"
        self.said = ""
        run = folder / "run"
        for each in (self.site, run):
            each.mkdir()
        own = (REPO / "image/overlay/usr/share/sluice/mosquitto.conf").read_text()
        assert "listener 1883 127.0.0.1" in own
        (folder / "own.conf").write_text(own.replace("listener 1883", f"listener {self.port}"))
        self._environment = {
            "PATH": os.environ["PATH"],
            "RUNTIME_DIRECTORY": str(run),
            "SLUICE_MOSQUITTO": str(folder / "own.conf"),
            "SLUICE_MOSQUITTO_SITE": str(self.site),
        }

    def start(self, seconds: float = 20.0) -> bool:
        """Start it once; returns whether it came up. It is stopped again."""
        up = threading.Event()
        with subprocess.Popen([MOSQUITTO], env=self._environment, stderr=subprocess.PIPE, text=True) as process:

            def read() -> None:
                assert process.stderr is not None
                for line in process.stderr:
                    self.said += line

            reader = threading.Thread(target=read)
            reader.start()
            try:
                wait_for(lambda: process.poll() is not None or self._answers(up), seconds=seconds)
            finally:
                process.terminate()
                code = process.wait(20)
                reader.join()
        result = {"EXIT_CODE": "exited" if code >= 0 else "killed", "EXIT_STATUS": str(code)}
        subprocess.run([MOSQUITTO, "ended"], env=self._environment | result, check=True)
        return up.is_set()

    def _answers(self, up: threading.Event) -> bool:
        # The packet CONNECT of MQTT 3.1.1 with an empty client identifier; the answer is CONNACK.
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as link:
                link.sendall(bytes.fromhex("100c00044d5154540402003c0000"))
                if link.recv(4)[:1] == b"\x20":
                    up.set()
        except OSError:
            return False
        return up.is_set()


def mounts() -> dict[str, tuple[str, list[str]]]:
    """Return what the image's fstab mounts: by place, what and how."""
    lines = (REPO / "image/overlay/etc/fstab").read_text().splitlines()
    fields = [line.split() for line in lines if line and not line.startswith("#")]
    return {where: (what, how.split(",")) for what, where, _, how, *_ in fields}


def test_a_slow_disk_has_as_long_to_be_mounted_as_to_appear_and_not_for_ever() -> None:
    """A mount of `data` that systemd gives up ends in the emergency, and a slot on trial is left for it."""
    cmdline = tomllib.loads((REPO / "image/base.toml").read_text())["cmdline"]
    (appears,) = [int(word.partition("=")[2]) for word in cmdline if "default_device_timeout_sec=" in word]
    for where, (what, how) in mounts().items():
        if what.startswith("/dev/mapper/"):
            assert f"x-systemd.mount-timeout={appears // 60}min" in how, where


def test_the_last_known_time_outlives_a_restart_where_no_clock_does() -> None:
    overlay = REPO / "image/overlay"
    # Where systemd-timesyncd keeps it (StateDirectory=systemd/timesync); the rest of /var is in memory.
    what, how = mounts()["/var/lib/systemd/timesync"]
    assert what.startswith("/data/")
    assert "bind" in how
    folders = [line.split() for line in (overlay / "usr/lib/tmpfiles.d/sluice.conf").read_text().splitlines()]
    (made,) = [words for words in folders if words[1] == what]
    assert made[3:5] == ["systemd-timesync", "systemd-timesync"]
    # Its time, that of the release, is the earliest that a device believes: systemd(1), /usr/lib/clock-epoch.
    assert (overlay / "usr/lib/clock-epoch").is_file()


def test_the_log_outlives_a_restart_and_takes_a_bounded_part_of_the_smallest_data_partition() -> None:
    files = [*REPO.glob("image/**/journald.conf.d/*.conf"), *REPO.glob("image/**/journald.conf")]
    assert [file.parent.name for file in files] == ["journald.conf.d"], "one place says it, for every board"
    read = configparser.ConfigParser()
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read(files)
    journal = read["Journal"]
    assert journal["Storage"] == "persistent"
    what, how = mounts()["/var/log/journal"]
    assert what.startswith("/data/")
    assert "bind" in how
    smallest = min(load(REPO / "image", name).partitions.data_min for name in names(REPO / "image"))
    assert size(journal["SystemMaxUse"]) <= smallest // 2
    # In memory, before the partition is there, and where it cannot be had.
    assert size(journal["RuntimeMaxUse"]) <= 16 << 20
    assert "at most 128 MB" in (REPO / "docs/image.md").read_text()
    assert size(journal["SystemMaxUse"]) == 128 << 20


@needs_mosquitto
def test_a_mistake_of_the_site_takes_the_local_broker_away_for_three_starts_and_no_longer(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path)
    assert broker.start()
    (broker.site / "tls.conf").write_text("listner 8883\n")
    assert [broker.start() for _ in range(3)] == [False, False, False]
    assert "left out" not in broker.said
    assert broker.start()
    assert f"left out: {broker.site}/*.conf" in broker.said


@needs_mosquitto
def test_files_of_the_site_that_were_corrected_are_taken_again(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path)
    file = broker.site / "tls.conf"
    file.write_text("listner 8883\n")
    assert [broker.start() for _ in range(4)] == [False, False, False, True]
    broker.said = ""
    file.write_text("max_connections 7\n")
    assert broker.start()
    assert "left out" not in broker.said
    assert f"include_dir {broker.site}" in (tmp_path / "run/mosquitto.conf").read_text()


def test_cleaning_up_keeps_the_keys_that_devices_trust(tmp_path: Path) -> None:
    keys = tmp_path / "var/image/keys"
    keys.mkdir(parents=True)
    (keys / "bundle.key").write_text("secret")
    for name in ("var/image/uefi-amd64", "var/demo", "build"):
        (tmp_path / name).mkdir(parents=True)
    argv = ["make", "--no-print-directory", "-C", str(tmp_path), "-f", str(REPO / "Makefile"), "clean"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert (keys / "bundle.key").read_text() == "secret"
    assert "kept: var/image/keys" in said
    assert [each.name for each in (tmp_path / "var/image").iterdir()] == ["keys"]
    assert not (tmp_path / "build").exists()
    shutil.rmtree(keys)
    subprocess.run(argv, capture_output=True, check=True)
    assert not (tmp_path / "var").exists()
