"""The console behind a real HTTP server on a free port of loopback, in a thread."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from tests.simulators.waiting import wait_for


class ConsoleServer:
    """Serves an application while the block runs; what makes it is given what tells that the block has ended."""

    def __init__(self, make_app: Callable[[Callable[[], bool]], ASGIApp]) -> None:
        config = uvicorn.Config(
            make_app(self.is_closing),
            host="127.0.0.1",
            port=0,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=3,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="console-server")
        self.url = ""

    def is_closing(self) -> bool:
        """Tell whether the block has ended."""
        return self._server.should_exit

    def __enter__(self) -> Self:
        self._thread.start()
        wait_for(lambda: self._server.started, what="the console listens")
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask the server to stop, and wait until it has."""
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive(), "the console server did not stop"
