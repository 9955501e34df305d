"""Serial devices on pseudo-terminals."""

import os
import pty
import select
import threading
import tty
from contextlib import suppress
from pathlib import Path


class SerialDevice:
    """A device that writes lines. `path` is what a program opens."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        tty.setraw(theirs)
        self.path = Path(os.ttyname(theirs))
        self._theirs = theirs  # kept open, or the first reader to close it would hang up the line
        self._sending = threading.Event()

    def write(self, data: bytes) -> None:
        """Send bytes."""
        os.write(self._ours, data)

    def stream(self, line: bytes, *, every_seconds: float = 0.02) -> None:
        """Send a line again and again, until unplugged."""

        def run() -> None:
            while not self._sending.wait(every_seconds):
                with suppress(OSError):
                    self.write(line)

        threading.Thread(target=run, daemon=True).start()

    def unplug(self) -> None:
        """Pull the cable: reads fail."""
        self._sending.set()
        for handle in (self._ours, self._theirs):
            with suppress(OSError):
                os.close(handle)


class NullModem:
    """Two terminals, connected: what goes into one comes out of the other."""

    def __init__(self) -> None:
        self._ends = [pty.openpty() for _ in range(2)]
        for _, theirs in self._ends:
            tty.setraw(theirs)
        self.paths = tuple(Path(os.ttyname(theirs)) for _, theirs in self._ends)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        left, right = (ours for ours, _ in self._ends)
        while not self._stop.is_set():
            ready, _, _ = select.select([left, right], [], [], 0.05)
            for handle in ready:
                with suppress(OSError):
                    os.write(right if handle == left else left, os.read(handle, 4096))

    def unplug(self) -> None:
        """Pull the cable."""
        self._stop.set()
        self._thread.join()
        for pair in self._ends:
            for handle in pair:
                with suppress(OSError):
                    os.close(handle)
