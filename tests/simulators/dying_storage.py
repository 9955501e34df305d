"""Storage whose process is killed at a chosen write. Knobs: which one, and whether before or after its effect."""

import os

from cloud_bridge.registry.storage import Storage

KILLED = 137


class DyingStorage(Storage):
    """Ends the process as SIGKILL does: nothing is cleaned up, nothing is caught."""

    def __init__(self, url: str, *, at: int, after: bool) -> None:
        super().__init__(url)
        self.left = at
        self.after = after
        self.written: list[str] = []

    def write(self, path: str, content: bytes) -> None:
        if self.left == 0 and not self.after:
            os._exit(KILLED)
        super().write(path, content)
        self.written.append(path)
        if self.left == 0:
            os._exit(KILLED)
        self.left -= 1
