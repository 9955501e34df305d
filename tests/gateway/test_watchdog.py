"""The watchdog is fed only by progress, and systemd hears what sd_notify(3) says."""

import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.watchdog import Notifier, Progress


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """The socket on which the service manager listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + address[1:] if address.startswith("@") else address)
        listener.settimeout(0)
        yield listener


def heard(listener: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(listener.recv(4096).decode())
        except BlockingIOError:
            return messages


@pytest.fixture(params=["file", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "file" else f"@sluice-test-{secrets.token_hex(8)}"


def test_the_manager_hears_ready_status_and_stopping(address: str) -> None:
    notifier = Notifier(address)
    with manager(address) as listener:
        notifier.ready("3 pipelines")
        notifier.status("all well")
        notifier.stopping()
        assert heard(listener) == ["READY=1\nSTATUS=3 pipelines", "STATUS=all well", "STOPPING=1"]


def test_the_manager_hears_of_a_reload_with_the_time_it_began(address: str) -> None:
    with manager(address) as listener:
        before_us = time.monotonic_ns() // 1000
        Notifier(address).reloading()
        (told,) = heard(listener)
    reloading, began, _status = told.split("\n")
    assert reloading == "RELOADING=1"
    assert before_us <= int(began.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_the_watchdog_is_fed_at_a_third_of_its_time(address: str) -> None:
    clock = Clock()
    notifier = Notifier(address, 30.0, clock)
    progress = Progress(clock)
    with manager(address) as listener:
        for _ in range(25):
            notifier.watchdog(progress)
            clock.now += 1.0
        assert heard(listener) == ["WATCHDOG=1"] * 3


def test_the_watchdog_starves_while_any_component_is_late(address: str) -> None:
    clock = Clock()
    notifier = Notifier(address, 3.0, clock)
    progress = Progress(clock)
    progress.expect("camera", 10.0)
    progress.expect("motor", 10.0)
    with manager(address) as listener:
        for _ in range(20):
            clock.now += 1.0
            progress.stamp("motor")
            notifier.watchdog(progress)
        fed = heard(listener)
        assert fed.count("WATCHDOG=1") == 10
        assert fed[-1] == "STATUS=stalled: camera"
        progress.stamp("camera")
        notifier.watchdog(progress)
        assert heard(listener) == ["STATUS=running", "WATCHDOG=1"]


def test_a_component_that_ended_is_not_waited_for() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.expect("camera", 1.0)
    clock.now += 5
    assert progress.late() == {"camera": 5.0}
    progress.forget("camera")
    assert progress.late() == {}
    progress.stamp("camera")
    assert progress.late() == {}


def test_an_old_stamp_does_not_take_progress_back() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.expect("camera", 1.0)
    progress.stamp("camera", 3.0)
    assert progress.late() == {}


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_of_another_process_is_not_ours(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier.from_environment(environment).watchdog_seconds == seconds


def test_a_missing_manager_does_no_harm(tmp_path: Path) -> None:
    Notifier(None).ready()
    Notifier(str(tmp_path / "nobody")).ready("alone")
