"""The Edge TPU by its delegate library, without the vendor's Python packages.

Opening a device holds the GIL for as long as it takes (a USB device downloads its firmware: seconds), because
`load_delegate` calls through `ctypes.PyDLL`. It happens on the interpreter's own thread when a pipeline starts, and
nothing but `EdgeTpuBackend.load` does it: a child process for each device can take its place behind `Session`.
"""

import ctypes
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from gateway.errors import BackendUnavailableError, ConfigError
from gateway.inference.backend import Availability, ModelFile, Session
from gateway.inference.litert import CPU_BACKEND, EDGETPU_OP, InterpreterSession, has_op, open_interpreter
from gateway.inference.ops import ops_of
from gateway.inference.runtime import Runtime, installed_runtime
from gateway.wire.manifest import Target

log = structlog.get_logger()

EDGETPU_BACKEND: Final = "edgetpu"
LIBRARY: Final = "libedgetpu.so.1"

_DEVICE_STRING = re.compile(r"^(?:(usb|pci)(?::(\d+))?|:(\d+))?$")
_KINDS = {0: "pci", 1: "usb"}  # enum edgetpu_device_type


@dataclass(frozen=True, slots=True)
class Device:
    """An Edge TPU as the library lists it."""

    kind: str  # `usb` or `pci`
    path: str  # in sysfs or /dev


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("path", ctypes.c_char_p))  # struct edgetpu_device, edgetpu_c.h


def check_device_string(device: str) -> None:
    """Check "", ":N", "usb", "usb:N", "pci", "pci:N".

    Raises:
        ConfigError: it is none of these.
    """
    if _DEVICE_STRING.match(device) is None:
        raise ConfigError(f"device {device!r}: not an Edge TPU; write usb, usb:0, pci, pci:0 or :0, or leave it out")


def matching(devices: Sequence[Device], device: str) -> Device | None:
    """Return the device that a device string names, None if it is not there.

    Numbers count within their kind; without a kind, over all devices as listed.
    """
    match = _DEVICE_STRING.match(device)
    if match is None:
        return None
    kind, number = match[1], int(match[2] or match[3] or 0)
    chosen = [found for found in devices if kind in (None, found.kind)]
    return chosen[number] if number < len(chosen) else None


def list_devices(library: str = LIBRARY) -> list[Device]:
    """Return the Edge TPUs the library sees.

    Raises:
        BackendUnavailableError: the library is not there or is another one.
    """
    try:
        functions = ctypes.CDLL(library)
        ask, free = functions.edgetpu_list_devices, functions.edgetpu_free_devices
    except (OSError, AttributeError) as error:
        raise BackendUnavailableError(
            f"{library} cannot be used ({error}): install the Edge TPU runtime, package libedgetpu1-std"
        ) from error
    ask.restype, ask.argtypes = ctypes.POINTER(_Device), [ctypes.POINTER(ctypes.c_size_t)]
    free.restype, free.argtypes = None, [ctypes.POINTER(_Device)]
    count = ctypes.c_size_t(0)
    listed = ask(ctypes.byref(count))
    if not listed:
        return []
    try:
        return [
            Device(_KINDS.get(listed[i].type, "unknown"), (listed[i].path or b"").decode(errors="replace"))
            for i in range(count.value)
        ]
    finally:
        free(listed)


class EdgeTpuBackend:
    """Runs `edgetpu` artefacts on one device."""

    name: Final = EDGETPU_BACKEND
    targets: tuple[Target, ...] = ("edgetpu",)

    def __init__(
        self, device: str = "", library: str = LIBRARY, find: Callable[[], Runtime] = installed_runtime
    ) -> None:
        """Take a device string.

        Raises:
            ConfigError: it is none.
        """
        check_device_string(device)
        self._device = device
        self._library = library
        self._find = find

    def probe(self) -> Availability:
        """Look for the runtime, the library and the device; does not open the device."""
        try:
            self._find()
            devices = list_devices(self._library)
        except BackendUnavailableError as error:
            return Availability(available=False, reason=str(error))
        found = matching(devices, self._device)
        if found is not None:
            return Availability(available=True, reason=f"Edge TPU at {found.kind} {found.path}")
        wanted = f"Edge TPU {self._device!r}" if self._device else "Edge TPU"
        seen = ", ".join(f"{device.kind} {device.path}" for device in devices) or "none"
        return Availability(
            available=False,
            reason=f"no {wanted} is connected (found: {seen}): connect it; over USB check the udev rule and the power, "
            "over PCIe the gasket and apex drivers",
        )

    def load(self, model: ModelFile, threads: int) -> Session:
        """Open the device and load a model; see `Backend.load`. Holds the GIL while the device opens.

        A model that was not compiled for the Edge TPU runs on the CPU, delegate or not; its session says so.
        """
        # load_delegate leaves a half-made object behind when the library is absent, which complains on stderr.
        availability = self.probe()
        if not availability.available:
            raise BackendUnavailableError(availability.reason)
        runtime = self._find()
        delegate = self._open(runtime)
        interpreter = open_interpreter(runtime, model, threads, [delegate])
        if has_op(ops_of(interpreter), EDGETPU_OP):
            return InterpreterSession(
                interpreter, model, str(runtime), self.name, self._device or "any", fixed_batch=True
            )
        log.warning("model_not_compiled_for_edgetpu", model=model.release, file=model.file, runs_on=CPU_BACKEND)
        return InterpreterSession(interpreter, model, str(runtime), CPU_BACKEND, "cpu")

    def _open(self, runtime: Runtime) -> Any:
        options = {"device": self._device} if self._device else {}
        try:
            return runtime.load_delegate(self._library, options)
        except (OSError, ValueError) as error:  # OSError: the library; ValueError: the device
            detail = " ".join(str(error).split())
            raise BackendUnavailableError(
                f"the Edge TPU {self._device!r} cannot be opened ({detail}): another program may hold it, or it needs "
                "to be plugged in again"
            ) from error
