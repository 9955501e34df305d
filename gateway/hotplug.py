"""Tells pipelines when what they need is plugged in or pulled out, so that they act at once and not by trial.

udev's messages only say that it is time to look. What is done follows from what is there then, so that a message that
was lost, or came late, does no harm; and without any (a container, no udev) a look every few seconds does the same.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final, Protocol

import structlog

from gateway.devices.accelerators import Accelerator, accelerators
from gateway.devices.uevents import Uevent, UeventListener, UeventsUnavailableError
from gateway.errors import AcceleratorLostError, GatewayError
from gateway.inference.edgetpu import EDGETPU_BACKEND
from gateway.moments import happens
from gateway.sources.presence import LocalDevice
from gateway.threads import Worker

log = structlog.get_logger()

LOOK_EVERY_SECONDS: Final = 5.0
GRACE_SECONDS: Final = 1.0
"""A device that is reset, or gets its firmware, is back within that; a run that still answers then goes on."""
_WATCHED: Final = frozenset({"", "apex", "gpio", "iio", "pci", "tty", "usb", "video4linux"})


class Listener(Protocol):
    """Where udev's messages arrive: `gateway.devices.uevents.UeventListener`."""

    def fileno(self) -> int: ...
    def receive(self) -> list[Uevent]: ...
    def close(self) -> None: ...


class Plugged(Protocol):
    """A pipeline, as far as plugs go: `gateway.pipeline.Pipeline`."""

    name: str

    @property
    def device(self) -> LocalDevice | None: ...
    @property
    def failing(self) -> bool: ...
    @property
    def looking_seconds(self) -> float: ...
    @property
    def backend(self) -> str: ...
    def look_again(self) -> None: ...
    def abandon(self, reason: str, error: GatewayError | None = None) -> None: ...


class HotPlug:
    """Watches devices for pipelines. Made and run on the event loop."""

    def __init__(
        self,
        pipelines: Mapping[str, Plugged],
        wanted: Mapping[str, str],
        came: Callable[[str], bool],
        *,
        listen: Callable[[], Listener] = UeventListener,
        find: Callable[[], list[Accelerator]] = accelerators,
        clock: Callable[[], float] = time.monotonic,
        look_every_seconds: float = LOOK_EVERY_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        """Take the pipelines.

        Args:
            pipelines: by name.
            wanted: for each pipeline the accelerator in its configuration: "", `usb`, `pci:0`, ….
            came: told each pipeline that may use an accelerator that has come; called on a thread, may block. Returns
                False when the pipeline is only starting, perhaps without it: it is told again at the next look.
            listen: opens udev's messages.
            find: looks for accelerators.
            clock: monotonic seconds.
            look_every_seconds: how often it looks although nothing was told.
            grace_seconds: how long an accelerator may be away.
        """
        self._pipelines = pipelines
        self._wanted = wanted
        self._came = came
        self._listen = listen
        self._find = find
        self._clock = clock
        self._look_every_seconds = look_every_seconds
        self._grace_seconds = grace_seconds
        self._told = asyncio.Event()
        self._heard: list[Uevent] = []
        self._there: dict[str, bool] = {}  # which devices of sources were there at the last look
        self._accelerators: dict[str, Accelerator] = {}
        self._left_at: float | None = None
        self._offered: set[str] = set()  # pipelines that are to hear of an accelerator
        self.arrivals = 0  # of accelerators, since the start

    async def run(self) -> None:
        """Watch until cancelled."""
        with Worker("hotplug") as worker:
            await worker.do(self._look_first)
            await self._listen_and_watch(worker)

    async def _listen_and_watch(self, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        try:
            listener: Listener | None = self._listen()
        except UeventsUnavailableError as error:
            listener = None
            log.warning("hotplug_by_looking_only", error=str(error), every_seconds=self._look_every_seconds)
        if listener is None:
            await self._watch(worker)
            return
        loop.add_reader(listener.fileno(), self._hear, listener)
        try:
            await self._watch(worker)
        finally:
            loop.remove_reader(listener.fileno())
            listener.close()

    def _hear(self, listener: Listener) -> None:
        self._heard += [event for event in listener.receive() if event.subsystem in _WATCHED]
        if self._heard:
            self._told.set()

    async def _watch(self, worker: Worker) -> None:
        while True:
            due = self._look_every_seconds if self._left_at is None else min(0.25, self._look_every_seconds)
            await happens(self._told, due)
            self._told.clear()
            heard, self._heard = self._heard, []
            self._offered |= set(await worker.do(self._look, heard))
            for name in sorted(self._offered):
                if await worker.do(self._came, name):
                    self._offered.discard(name)

    def _look_first(self) -> None:
        self._there = {name: device.there() for name, device in self._devices()}
        self._accelerators = {found.place: found for found in self._find()}

    def _devices(self) -> list[tuple[str, LocalDevice]]:
        return [(name, each.device) for name, each in self._pipelines.items() if each.device is not None]

    def _look(self, heard: list[Uevent]) -> list[str]:
        """Look at everything once; returns the pipelines for which an accelerator has come."""
        named = frozenset[str]().union(*(event.names for event in heard if event.action != "remove"))
        for name, device in self._devices():
            there = device.there()
            if there != self._there.get(name) or device.path in named:
                if there != self._there.get(name):
                    log.info("device_came" if there else "device_left", pipeline=name, device=device.path)
                self._there[name] = there
                self._pipelines[name].look_again()
        removed = frozenset[str]().union(*(event.names for event in heard if event.action == "remove"))
        return self._look_at_accelerators(removed)

    def _look_at_accelerators(self, removed: Collection[str]) -> list[str]:
        before, self._accelerators = self._accelerators, {found.place: found for found in self._find()}
        for place, known in before.items():
            now = self._accelerators.get(place)
            # Out and in again between two looks: udev has said so, or the bus has given it another number.
            returned = now is not None and (now.node != known.node or str(known.node) in removed)
            if now is None or (known.ready and returned):
                log.info("accelerator_left", accelerator=place)
                self._left_at = self._left_at or self._clock()
        fresh = [
            found
            for place, found in self._accelerators.items()
            if place not in before or (found.ready and not before[place].ready)
        ]
        for found in fresh:
            log.info("accelerator_came", accelerator=found.place, ready=found.ready)
        if self._left_at is not None and self._clock() - self._left_at >= self._grace_seconds:
            self._left_at = None
            self._leave_what_is_lost()
        if not fresh:
            return []
        self.arrivals += len(fresh)
        kinds = {found.kind for found in fresh}
        return [name for name in self._pipelines if _suits(self._wanted.get(name, ""), kinds)]

    def _leave_what_is_lost(self) -> None:
        """End the runs whose accelerator is gone, and those to which the one that is back does not answer."""
        kinds = {found.kind for found in self._accelerators.values()}
        for name, pipeline in self._pipelines.items():
            if pipeline.backend != EDGETPU_BACKEND:
                continue
            gone = not _suits(self._wanted.get(name, ""), kinds)
            if gone or pipeline.failing or pipeline.looking_seconds > self._grace_seconds:
                reason = "its accelerator was unplugged" if gone else "its accelerator was reset and answers no more"
                pipeline.abandon(reason, AcceleratorLostError(f"pipeline {name}: {reason}"))


def _suits(wanted: str, kinds: Collection[str]) -> bool:
    """Tell whether one of these kinds is what a device string asks for."""
    kind = wanted.partition(":")[0]
    return bool(kinds) if not kind else kind in kinds
