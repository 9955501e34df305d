"""HTTP: the console and the metrics, each on a socket of its own."""

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from cloud_bridge.errors import BridgeError
from cloud_bridge.listening import ListeningSocket, Sides

log = structlog.get_logger()

_GRACE_SECONDS = 3
_REQUEST_SECONDS = 10.0
_MOST_CONNECTIONS = 256
_MOST_OF_A_SIDE = 64
"""A proxy counts as one side, and so does a site behind one address: it is more than either needs at one time."""


class HttpServer:
    """Serves one application until stopped."""

    def __init__(
        self,
        name: str,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        request_seconds: float = _REQUEST_SECONDS,
        most_of_a_side: int = _MOST_OF_A_SIDE,
    ) -> None:
        """Prepare.

        request_seconds: a connection on which a request, with its body, takes longer to come is closed, and so is one
            on which a TLS handshake does.
        most_of_a_side: so many connections one side (an IPv4 address, an IPv6 /64) may have open.
        """
        self._name = name
        self._scheme = "https" if tls else "http"
        self._address = (host, port)
        config = uvicorn.Config(
            app,
            http=type("_Impatient", (_ImpatientHttp,), {"seconds": request_seconds}),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            h11_max_incomplete_event_size=16 * 1024,
            limit_concurrency=_MOST_CONNECTIONS,
        )
        if tls is not None:
            config.load()
            config.ssl = tls
        self._server = _Server(config, handshake_seconds=request_seconds)
        self._sides = Sides(name, most_of_a_side)

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
        try:
            listening = ListeningSocket.at(host, port, self._sides)
        except OSError as error:
            raise BridgeError(f"{self._name} cannot listen on {host}:{port}: {error.strerror or error}") from error
        with listening:
            # asyncio does it for sockets that it has made itself. Without it an answer of two parts, head and body,
            # waits for the client's delayed acknowledgement: 40 ms (RFC 9293 §3.7.4, RFC 1122 §4.2.3.2).
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            where = f"{self._scheme}://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
            log.info("listening", what=self._name, url=where)
            await self._server.serve(sockets=[listening])


class _ImpatientHttp(H11Protocol):
    """Closes connections on which no request comes: a few hundred would keep everybody else out for ever."""

    seconds = _REQUEST_SECONDS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # The certificate that a client has shown, for applications that look at it: `request.state.peer_certificate`.
        self.app_state = {**self.app_state, "peer_certificate": transport.get_extra_info("peercert")}
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.cycle.response_complete:  # the next request was there already: its body may be still to come
            self._watch()

    def _watch(self) -> None:
        """Wait for a request that has not ended, from its first byte to the last of its body, however it trickles in.

        From then on it is the application's turn, which may answer without an end.
        """
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.seconds, self.transport.close)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Server(uvicorn.Server):
    """Leaves the signals to the program around it, and waits no longer for a TLS handshake than for a request."""

    def __init__(self, config: uvicorn.Config, *, handshake_seconds: float) -> None:
        super().__init__(config)
        self._handshake_seconds = handshake_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # it would leave a handshake asyncio's own minute, and has no setting for it
        limit = self._handshake_seconds if self.config.ssl else None
        for one in sockets or ():
            self.servers.append(
                await asyncio.get_running_loop().create_server(
                    self._protocol,
                    sock=one,
                    ssl=self.config.ssl,
                    ssl_handshake_timeout=limit,
                    backlog=self.config.backlog,
                )
            )

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]  # one of several kinds
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
