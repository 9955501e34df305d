"""What the rig's sensor says: a calm value with a little noise, until a test shifts it."""

import random
import threading
from collections.abc import Callable
from typing import Final

RATE_HZ: Final = 40.0
_CALM: Final = 20.0


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
