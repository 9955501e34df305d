"""udev's messages, as they come over a real netlink socket in a network namespace of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.devices.uevents import Uevent, UeventListener, UeventsUnavailableError, parse
from tests.simulators.udev import message

CAMERA = {
    "ACTION": "add",
    "SUBSYSTEM": "video4linux",
    "DEVNAME": "/dev/video0",
    "DEVLINKS": "/dev/sluice/camera-a /dev/v4l/by-path/a",
}

# Runs as root of a namespace, where only this program listens, and where sending is allowed.
_TALK = """
import select, socket, sys
from gateway.devices.uevents import UeventListener
from tests.simulators.udev import message

listener = UeventListener()
port = listener._socket.getsockname()[0]
sender = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
words = {"ACTION": "add", "SUBSYSTEM": "tty", "DEVNAME": "/dev/ttyUSB0"}
if sys.argv[1] == "unicast":
    sender.sendto(message(words | {"DEVNAME": "/dev/forged"}), (port, 0))
if sys.argv[1] == "garbage":
    sender.sendto(b"add@/devices/x\\0ACTION=add\\0", (0, 2))
if sys.argv[1] == "flood":
    for _ in range(3000):
        sender.sendto(message(words | {"FILL": "x" * 2000}), (0, 2))
sender.sendto(message(words), (0, 2))
select.select([listener.fileno()], [], [], 5)
events = listener.receive()
print(len(events), any(not event.subsystem for event in events), *sorted({n for e in events for n in e.names}))
"""


def talk(how: str) -> list[str]:
    flags = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]
    if subprocess.run(["unshare", *flags, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a network namespace, so that nobody else hears what is said")
    command = ["unshare", *flags, sys.executable, "-c", _TALK, how]
    told = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30, cwd=Path(__file__).parents[3]
    )
    assert told.returncode == 0, told.stderr
    return told.stdout.split()


def test_a_message_of_udevs_arrives() -> None:
    assert talk("plain") == ["1", "False", "/dev/ttyUSB0"]


def test_what_is_sent_to_this_program_alone_is_not_believed() -> None:
    assert talk("unicast") == ["1", "False", "/dev/ttyUSB0"]


def test_what_the_kernel_says_before_udev_is_done_is_not_taken_for_udevs_word() -> None:
    assert talk("garbage") == ["1", "False", "/dev/ttyUSB0"]


def test_messages_that_were_dropped_are_told_as_one_without_a_device() -> None:
    count, dropped, *_names = talk("flood")
    assert dropped == "True"
    assert int(count) < 3000


def test_a_message_names_every_path_of_its_device() -> None:
    event = parse(message(CAMERA))
    assert event is not None
    assert (event.action, event.subsystem) == ("add", "video4linux")
    assert event.names == {"/dev/video0", "/dev/sluice/camera-a", "/dev/v4l/by-path/a"}


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"libudev\0",
        b"add@/devices/a\0ACTION=add\0" * 3,
        message(CAMERA)[:-5],
        b"LIBUDEV\0" + message(CAMERA)[8:],
        message(CAMERA)[:8] + b"\0\0\0\0" + message(CAMERA)[12:],
        message({"SUBSYSTEM": "usb"}),
    ],
)
def test_what_is_no_message_of_udevs_is_passed_over(damaged: bytes) -> None:
    assert parse(damaged) is None


def test_a_device_without_names_has_none() -> None:
    assert Uevent("remove", "usb").names == frozenset()


def test_a_program_that_may_not_listen_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("gateway.devices.uevents.socket.socket", refuses)
    with pytest.raises(UeventsUnavailableError, match="Operation not permitted"):
        UeventListener()
