"""Serves metrics over HTTP: two paths, a bearer token where others could listen, nothing else."""

import hmac
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from gateway.config import Metrics as MetricsSettings
from gateway.errors import ConfigError

log = structlog.get_logger()

_REQUEST_SECONDS: Final = 5.0
_MAX_REQUESTS_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Exposition:
    """A running endpoint."""

    url: str

    @classmethod
    @contextmanager
    def open(
        cls, registry: CollectorRegistry, settings: MetricsSettings, healthy: Callable[[], list[str]]
    ) -> Iterator["Exposition"]:
        """Listen until the end of the `with` block.

        Raises:
            ConfigError: the address cannot be used, or it is off loopback without a token.
        """
        token = _token_of(settings)
        try:
            server = _Server(settings, registry, token, healthy)
        except OSError as error:
            place = f"{settings.host}:{settings.port}"
            message = (
                f"metrics cannot listen on {place}: {error.strerror or error}; change metrics.host or metrics.port"
            )
            raise ConfigError(message) from error
        with server:
            address, port = server.server_address[:2]
            if token is None and not _is_loopback(str(address)):
                raise ConfigError(
                    f"metrics.host {settings.host} is not this machine alone: it needs metrics.token_file"
                )
            host = f"[{address!s}]" if ":" in str(address) else str(address)
            url = f"http://{host}:{port}/metrics"
            thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
            thread.start()
            log.info("metrics_served", url=url)
            try:
                yield cls(url)
            finally:
                server.shutdown()
                thread.join()


def _token_of(settings: MetricsSettings) -> bytes | None:
    if settings.token_file is None:
        return None
    try:
        token = settings.token_file.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"metrics.token_file {settings.token_file}: {error.strerror or error}") from error
    if not token:
        raise ConfigError(f"metrics.token_file {settings.token_file} is empty; put a long random word into it")
    return token


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(
        self,
        settings: MetricsSettings,
        registry: CollectorRegistry,
        token: bytes | None,
        healthy: Callable[[], list[str]],
    ) -> None:
        family, *_, address = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        self.registry = registry
        self.token = token
        self.healthy = healthy
        self._slots = threading.BoundedSemaphore(_MAX_REQUESTS_AT_ONCE)
        super().__init__((str(address[0]), int(address[1])), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        # One slow reader must not become a thousand threads.
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, _request: Any, client_address: Any) -> None:
        log.debug("metrics_client_lost", client=str(client_address))


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_SECONDS
    server_version = "sluice"
    sys_version = ""
    server: _Server

    def do_GET(self) -> None:
        """Answer one request."""
        if not self._allowed():
            self._answer(HTTPStatus.UNAUTHORIZED, "text/plain", b"a bearer token is needed\n")
            return
        match urlsplit(self.path).path:
            case "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, content_type, encode(self.server.registry))
            case "/healthz":
                unwell = self.server.healthy()
                text = f"not well: {', '.join(sorted(unwell))}\n" if unwell else "ok\n"
                status = HTTPStatus.SERVICE_UNAVAILABLE if unwell else HTTPStatus.OK
                self._answer(status, "text/plain; charset=utf-8", text.encode())
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there are /metrics and /healthz\n")

    def _allowed(self) -> bool:
        token = self.server.token
        if token is None:
            return True
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("utf-8", "replace"), token)

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Bearer realm="metrics"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Scrapes are too many to be logged."""
