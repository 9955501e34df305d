"""HTTP: the console and the metrics, each on a socket of its own."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn
from starlette.types import ASGIApp

from cloud_bridge.errors import BridgeError

log = structlog.get_logger()

_GRACE_SECONDS = 3


class HttpServer:
    """Serves one application until stopped."""

    def __init__(self, name: str, app: ASGIApp, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._name = name
        self._scheme = "https" if tls else "http"
        self._address = (host, port)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            h11_max_incomplete_event_size=16 * 1024,
            limit_concurrency=256,
        )
        if tls is not None:
            config.load()
            config.ssl = tls
        self._server = _Server(config)

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop; endless responses end then."""
        return self._server.should_exit

    def stop(self) -> None:
        """Ask `run` to return."""
        self._server.should_exit = True

    async def run(self) -> None:
        """Listen and serve.

        Raises:
            BridgeError: the address cannot be listened on.
        """
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise BridgeError(f"{self._name} cannot listen on {host}:{port}: {error.strerror or error}") from error
        with listening:
            where = f"{self._scheme}://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
            log.info("listening", what=self._name, url=where)
            await self._server.serve(sockets=[listening])


class _Server(uvicorn.Server):
    """Leaves the signals to the program around it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
