"""What the rig's sensor says: a calm value with a little noise, until a test shifts it."""

import contextlib
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

RATE_HZ: Final = 40.0
_CALM: Final = 20.0
_SEND_SECONDS: Final = 5.0


class SensorFeed:
    """Says a line at a fixed rate on a thread of its own. `shift` may be changed at any time."""

    def __init__(self, *, seed: int = 7) -> None:
        self.shift = 0.0
        self._noise = random.Random(seed)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, say: Callable[[bytes], None]) -> None:
        """Begin to speak, or go on with another line."""
        self.stop()
        self._stop.clear()
        self._thread = threading.Thread(target=self._speak, args=(say,), name="sensor-feed", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Fall silent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10.0)
            self._thread = None

    def _speak(self, say: Callable[[bytes], None]) -> None:
        while not self._stop.wait(1.0 / RATE_HZ):
            try:
                say(f"{_CALM + self.shift + self._noise.gauss(0.0, 0.2):.3f}".encode())
            except OSError:
                continue  # the device is off, or the sensor is not plugged: what it says is lost, as on a real line


class SensorLine:
    """The way from the rig to the sensor of a virtual board, whichever QEMU has it just now. May be used by any thread.

    A board that loses its power takes the other end with it, and may do so between any two lines: a line that cannot be
    sent is lost, and the next one looks for the board anew.
    """

    def __init__(self, path: Path) -> None:
        """path: of the UNIX socket at which QEMU offers the port."""
        self._path = path
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def say(self, line: bytes) -> None:
        """Send a line.

        Raises:
            OSError: there is no board.
        """
        with self._lock:
            if self._socket is None:
                self._socket = _connected(self._path)
            try:
                # Nobody reads in the guest: what a serial line does then is to lose it.
                with contextlib.suppress(TimeoutError):
                    self._socket.sendall(line + b"\n")
            except OSError:
                self._hang_up()
                raise

    def close(self) -> None:
        """Hang up; the next line connects anew."""
        with self._lock:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(_SEND_SECONDS)
    try:
        made.connect(str(path))
    except OSError:
        made.close()
        raise
    return made
