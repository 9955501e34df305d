"""A headless Chromium driven over its DevTools pipe: nothing but the standard library is needed."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.simulators.waiting import wait_for

# Without the background flags, Chromium looks for its maker's hosts at every start.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


def chromium() -> str | None:
    """Return where Chromium is, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class BrowserError(AssertionError):
    """The browser did not answer, or refused."""


class Browser:
    """One page of a browser with an empty profile. What it complains about is collected in `complaints`."""

    def __init__(self, width: int = 1280, height: int = 900, timeout_seconds: float = 30.0) -> None:
        self._size = f"--window-size={width},{height}"
        self._timeout_seconds = timeout_seconds
        self._profile = Path(tempfile.mkdtemp(prefix="sluice-browser-"))
        self._last_id = 0
        self._buffer = b""
        self._session: str | None = None
        self.complaints: list[str] = []

    def __enter__(self) -> Self:
        command = [chromium() or "chromium", *_FLAGS, self._size, f"--user-data-dir={self._profile}", "about:blank"]
        their_read, self._write = os.pipe()
        self._read, their_write = os.pipe()
        # Above 3 and 4, so that putting one in its place cannot close the other.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (their_read, their_write)]

        def place() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            command,
            preexec_fn=place,  # noqa: PLW1509  # there is no other way to give a child the numbers 3 and 4
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(self._profile)},  # it leaves its own folders of sockets behind
        )
        for end in (their_read, their_write, *ends):
            os.close(end)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        os.close(self._read)
        os.close(self._write)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its helpers write into the profile a little longer
        wait_for(self._removed, what=f"{self._profile} is removed")

    def _removed(self) -> bool:
        shutil.rmtree(self._profile, ignore_errors=True)
        return not self._profile.exists()

    def open(self, url: str) -> None:
        """Load a page and wait until it is complete."""
        self._call("Page.navigate", url=url)
        self.wait_for(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript in the page; the page's policy does not bind the browser's own tools."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 15.0) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise BrowserError(f"not within {seconds} s: {expression}\n{self.complaints}")
            time.sleep(0.05)

    def _call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._last_id += 1
        request: dict[str, object] = {"id": self._last_id, "method": method, "params": parameters}
        if self._session is not None:
            request["sessionId"] = self._session
        os.write(self._write, json.dumps(request).encode() + b"\0")
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            message = self._next(deadline)
            if message.get("id") == self._last_id:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise BrowserError("the browser does not answer")
            chunk = os.read(self._read, 65536)
            if not chunk:
                raise BrowserError("the browser went away")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        match message:
            case {"method": "Log.entryAdded", "params": {"entry": {"level": "error" | "warning", "text": text}}}:
                self.complaints.append(str(text))
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                self.complaints.append(json.dumps(details))
