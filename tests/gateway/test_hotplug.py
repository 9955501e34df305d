"""What pipelines hear when something is plugged in or pulled out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.devices.accelerators import accelerators
from gateway.devices.uevents import UeventsUnavailableError
from gateway.errors import AcceleratorLostError, GatewayError
from gateway.hotplug import HotPlug, Listener
from gateway.sources.presence import LocalDevice
from tests.simulators.sysfs import SysfsTree
from tests.simulators.udev import Udev


class Host:
    """A pipeline that only remembers."""

    def __init__(self, name: str, device: Path | None = None, backend: str = "litert-cpu") -> None:
        self.name = name
        self.device = LocalDevice(str(device), device.exists) if device is not None else None
        self.backend = backend
        self.failing = False
        self.looking_seconds = 0.0
        self.looked = 0
        self.left: list[tuple[str, GatewayError | None]] = []

    def look_again(self) -> None:
        self.looked += 1

    def abandon(self, reason: str, error: GatewayError | None = None) -> None:
        self.left.append((reason, error))
        self.backend = ""


class Site:
    """Pipelines, a tree of devices, and somebody who plays udev."""

    def __init__(
        self,
        root: Path,
        *hosts: Host,
        listen: Callable[[], Listener] | None = None,
        look_every_seconds: float = 600.0,
        grace_seconds: float = 0.2,
    ) -> None:
        self.tree = SysfsTree(root)
        self.udev = Udev()
        self.hosts = {host.name: host for host in hosts}
        self.came: list[str] = []
        self.listening = False
        self._listen = listen or (lambda: self.udev)
        self.starting: set[str] = set()
        self.hotplug = HotPlug(
            self.hosts,
            {host.name: "usb" for host in hosts},
            self._take,
            listen=self._listens,
            find=lambda: accelerators(root),
            look_every_seconds=look_every_seconds,
            grace_seconds=grace_seconds,
        )

    def _listens(self) -> Listener:
        self.listening = True  # it has had its first look by then
        return self._listen()

    def _take(self, name: str) -> bool:
        self.came.append(name)
        return name not in self.starting

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        # The task is this test's own: nothing supervises it.
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.hotplug.run())
            await becomes(lambda: self.listening)
            try:
                yield
            finally:
                task.cancel()


async def becomes(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def settle() -> Callable[[], Awaitable[None]]:
    """Let as much time pass as an act would have needed several times over."""
    return lambda: asyncio.sleep(0.3)


async def test_a_device_that_comes_or_goes_is_looked_at_as_soon_as_udev_says_so(tmp_path: Path) -> None:
    camera = tmp_path / "camera"
    dock, other = Host("dock", camera), Host("other", tmp_path / "never")
    site = Site(tmp_path, dock, other)
    with capture_logs() as logs:
        async with site.running():
            camera.touch()
            site.udev.tell("add", "video4linux", DEVNAME="/dev/video0", DEVLINKS=str(camera))
            await becomes(lambda: dock.looked == 1)
            camera.unlink()
            site.udev.tell("remove", "video4linux", DEVNAME="/dev/video0", DEVLINKS=str(camera))
            await becomes(lambda: dock.looked == 2)
    assert other.looked == 0
    assert [entry["event"] for entry in logs if "device" in entry["event"]] == ["device_came", "device_left"]
    assert site.udev.closed


async def test_a_device_that_was_out_and_in_between_two_looks_is_opened_again(tmp_path: Path) -> None:
    camera = tmp_path / "camera"
    camera.touch()
    dock = Host("dock", camera)
    site = Site(tmp_path, dock)
    async with site.running():
        site.udev.tell("add", "video4linux", DEVNAME=str(camera))
        await becomes(lambda: dock.looked == 1)


async def test_what_happens_to_other_devices_wakes_nobody(
    tmp_path: Path, settle: Callable[[], Awaitable[None]]
) -> None:
    camera = tmp_path / "camera"
    dock = Host("dock", camera)
    site = Site(tmp_path, dock)
    async with site.running():
        camera.touch()  # there, but nobody has said so yet
        site.udev.tell("add", "net", INTERFACE="eth0")
        await settle()
        assert dock.looked == 0
        site.udev.tell("add", "usb", DEVNAME="/dev/bus/usb/001/002")
        await becomes(lambda: dock.looked == 1)


async def test_without_udevs_messages_it_looks_by_itself_and_says_so_once(tmp_path: Path) -> None:
    def refused() -> Listener:
        raise UeventsUnavailableError("udev's messages cannot be listened to: Operation not permitted")

    camera = tmp_path / "camera"
    dock = Host("dock", camera)
    site = Site(tmp_path, dock, listen=refused, look_every_seconds=0.02)
    with capture_logs() as logs:
        async with site.running():
            camera.touch()
            await becomes(lambda: dock.looked == 1)
    assert [entry["event"] for entry in logs] == ["hotplug_by_looking_only", "device_came"]


async def test_an_accelerator_that_comes_is_told_and_counted(tmp_path: Path) -> None:
    site = Site(tmp_path, Host("dock"))
    async with site.running():
        site.tree.plug("coral-usb-before-firmware")
        site.udev.tell("add", "usb")
        await becomes(lambda: site.came == ["dock"])
        assert site.hotplug.arrivals == 1


async def test_an_accelerator_of_another_kind_is_of_no_use_to_who_asked_for_usb(
    tmp_path: Path, settle: Callable[[], Awaitable[None]]
) -> None:
    site = Site(tmp_path, Host("dock"))
    async with site.running():
        site.tree.plug("coral-pcie")
        site.udev.tell("add", "apex")
        await becomes(lambda: site.hotplug.arrivals == 1)
        await settle()
        assert site.came == []


async def test_a_run_whose_accelerator_is_pulled_out_is_left_and_no_model_is_to_blame(tmp_path: Path) -> None:
    dock, clerk = Host("dock", backend="edgetpu"), Host("clerk")
    site = Site(tmp_path, dock, clerk)
    site.tree.plug("coral-usb")
    async with site.running():
        site.tree.unplug("coral-usb")
        site.udev.tell("remove", "usb")
        await becomes(lambda: dock.left)
    ((reason, error),) = dock.left
    assert "unplugged" in reason
    assert isinstance(error, AcceleratorLostError)
    assert clerk.left == []


async def test_an_accelerator_that_is_back_within_the_grace_and_answers_is_no_loss(
    tmp_path: Path, settle: Callable[[], Awaitable[None]]
) -> None:
    dock = Host("dock", backend="edgetpu")
    site = Site(tmp_path, dock, grace_seconds=1.0)
    site.tree.plug("coral-usb-before-firmware")
    async with site.running():
        site.tree.unplug("coral-usb-before-firmware")
        site.udev.tell("remove", "usb")
        await asyncio.sleep(0.05)
        site.tree.plug("coral-usb")
        site.udev.tell("add", "usb")
        await becomes(lambda: site.came)
        await becomes(lambda: site.hotplug._left_at is None)  # the grace is over
        await settle()
        assert dock.left == []


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_an_accelerator_that_is_back_but_answers_no_more_is_opened_anew(tmp_path: Path, how: str) -> None:
    dock = Host("dock", backend="edgetpu")
    site = Site(tmp_path, dock)
    site.tree.plug("coral-usb")
    async with site.running():
        site.tree.unplug("coral-usb")
        site.udev.tell("remove", "usb")
        await becomes(lambda: site.hotplug._left_at is not None)
        site.tree.plug("coral-usb")
        dock.failing, dock.looking_seconds = how == "fails", 9.0 if how == "hangs" else 0.0
        await becomes(lambda: dock.left)
    assert "reset" in dock.left[0][0]


@pytest.mark.parametrize("shown_by", ["number", "message"])
async def test_an_accelerator_that_was_out_and_in_between_two_looks_is_noticed(tmp_path: Path, shown_by: str) -> None:
    dock = Host("dock", backend="edgetpu")
    site = Site(tmp_path, dock)
    site.tree.plug("coral-usb")
    async with site.running():
        dock.failing = True
        if shown_by == "number":
            site.tree.set("2-1", "devnum", "6")
            site.udev.tell("add", "usb")
        else:
            site.udev.tell("remove", "usb", DEVNAME=str(tmp_path / "dev/bus/usb/002/005"))
        await becomes(lambda: dock.left)
    assert "reset" in dock.left[0][0]


async def test_a_run_that_still_answers_after_that_is_left_alone(
    tmp_path: Path, settle: Callable[[], Awaitable[None]]
) -> None:
    dock = Host("dock", backend="edgetpu")
    site = Site(tmp_path, dock)
    site.tree.plug("coral-usb")
    async with site.running():
        site.tree.set("2-1", "devnum", "6")
        site.udev.tell("add", "usb")
        await settle()
        await settle()
    assert dock.left == []


async def test_a_pipeline_that_is_only_starting_is_told_again(
    tmp_path: Path, settle: Callable[[], Awaitable[None]]
) -> None:
    site = Site(tmp_path, Host("dock"), look_every_seconds=0.05)
    site.starting.add("dock")
    async with site.running():
        site.tree.plug("coral-usb")
        site.udev.tell("add", "usb")
        await becomes(lambda: site.came == ["dock"] * 3)
        site.starting.clear()
        await becomes(lambda: len(site.came) == 4)
        await settle()
        assert len(site.came) == 4
