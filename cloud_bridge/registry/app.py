"""The repository over HTTPS: files by their exact names, ranges, ETags; no listing."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol

import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cloud_bridge.errors import BridgeError
from cloud_bridge.identity.limits import RateLimit, side_of
from cloud_bridge.registry.admission import Peer, peer_of
from cloud_bridge.registry.errors import ForbiddenError, NotFoundError
from cloud_bridge.registry.metrics import RegistryMetrics
from cloud_bridge.registry.ranges import Part, UnsatisfiableError, part_of
from cloud_bridge.registry.repository import TIMESTAMP_FILE

log = structlog.get_logger()

BLOCK_BYTES: Final = 256 * 1024
_STALL_SECONDS: Final = 60.0
"""A client that takes no block for so long is let go: it would keep a place that others need."""
_AT_ONCE: Final = 64  # answers to one side; a whole site may stand behind one address
_RETRY_SECONDS: Final = 15
_FOR_EVER: Final = "public, max-age=31536000, immutable"


class Files(Protocol):
    """Where files come from; see `Registry`."""

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of a file. Raises NotFoundError, StorageError."""
        ...

    def size(self, path: str) -> int:
        """Return the size of a file. Raises as `read`."""
        ...


Refusal = Callable[[Peer | None], Awaitable[str]]
"""Says why a client gets no answer, "" if it does; see `Admission`."""


async def anybody(_peer: Peer | None) -> str:
    """Refuse nobody."""
    return ""


class _Sending(Response):
    """A file, or a part of it, read block by block while it is sent."""

    def __init__(
        self,
        files: Files,
        path: str,
        part: Part,
        *,
        headers: dict[str, str],
        status: int,
        sent: Callable[[int], None],
        refusal: Callable[[], Awaitable[str]],
    ) -> None:
        super().__init__(None, status, headers, media_type=_media_type(path))
        self.headers["content-length"] = str(part.length)
        self._files = files
        self._path = path
        self._part = part
        self._sent = sent
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        at, end = self._part.offset, self._part.offset + self._part.length
        if scope["method"] == "HEAD":
            at = end
        while at < end:
            block = await asyncio.to_thread(self._files.read, self._path, at, min(BLOCK_BYTES, end - at))
            if not block:
                raise NotFoundError(f"{self._path} became shorter while it was sent")  # the server cuts the connection
            if why := await self._refusal():
                raise ForbiddenError(f"{self._path} was not sent to its end: {why}")
            at += len(block)
            async with asyncio.timeout(_STALL_SECONDS):
                await send({"type": "http.response.body", "body": block, "more_body": at < end})
            self._sent(len(block))
        if self._part.length == 0 or scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})


class _Endpoint:
    def __init__(
        self,
        files: Files,
        metrics: RegistryMetrics,
        requests_per_minute: float,
        monotonic: Callable[[], float],
        refusal: Refusal,
    ) -> None:
        self._files = files
        self._metrics = metrics
        self._monotonic = monotonic
        self._refusal = refusal
        self._by_side = RateLimit(requests_per_minute)
        self._open: Counter[str] = Counter()
        self._failing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        side = side_of(request.client.host if request.client is not None else "")
        started = self._monotonic()
        self._open[side] += 1
        try:
            response = await self._answer(request, side)
            self._metrics.requests.labels(str(response.status_code)).inc()
            await response(scope, receive, send)
        except (TimeoutError, BridgeError) as error:
            # The head is out already: only the end of the connection can tell the client that something is missing.
            log.warning("registry_sending_given_up", file=scope["path"][:200], error=str(error) or "client stalled")
            raise
        finally:
            self._metrics.seconds.observe(self._monotonic() - started)
            self._open[side] -= 1
            if not self._open[side]:
                del self._open[side]

    async def _answer(self, request: Request, side: str) -> Response:
        wait = self._by_side.wait_seconds(side, self._monotonic())
        if wait or self._open[side] > _AT_ONCE:
            return _refusal(429, "too many requests", {"retry-after": str(max(1, round(wait)))})
        path = request.url.path.removeprefix("/")
        peer = peer_of(getattr(request.state, "peer_certificate", None))
        if why := await self._refusal(peer):
            return _refusal(403, why, {"connection": "close"})
        try:
            answer = await self._found(path, request.headers, partial(self._refusal, peer))
            self._fares(None)
        except NotFoundError:
            self._fares(None)
            return _refusal(404, "not found")
        except BridgeError as error:
            self._fares(error)
            return _refusal(503, "unavailable", {"retry-after": str(_RETRY_SECONDS)})
        return answer

    async def _found(self, path: str, wanted: Headers, refusal: Callable[[], Awaitable[str]]) -> Response:
        size = await asyncio.to_thread(self._files.size, path)
        etag = await self._etag(path)
        headers = {"etag": etag, "accept-ranges": "bytes", "x-content-type-options": "nosniff"}
        headers["cache-control"] = "no-cache" if path == TIMESTAMP_FILE else _FOR_EVER
        if _matches(wanted.get("if-none-match"), etag):
            return Response(None, 304, headers)
        if wanted.get("if-range") not in (None, etag):
            part = None  # what the client has is of another file: it gets all of it (RFC 9110 §13.1.5)
        else:
            try:
                part = part_of(wanted.get("range"), size)
            except UnsatisfiableError:
                return _refusal(416, "no such range", {**headers, "content-range": f"bytes */{size}"})
        if part is not None:
            headers["content-range"] = f"bytes {part.offset}-{part.offset + part.length - 1}/{size}"
        return _Sending(
            self._files,
            path,
            part or Part(0, size),
            headers=headers,
            status=200 if part is None else 206,
            sent=self._metrics.sent.inc,
            refusal=refusal,
        )

    async def _etag(self, path: str) -> str:
        """Return what changes when the file does: names hold versions or digests, but for one."""
        if path == TIMESTAMP_FILE:
            return f'"{hashlib.sha256(await asyncio.to_thread(self._files.read, path)).hexdigest()}"'
        return f'"{path.rpartition("/")[2].split(".")[0] if path.startswith("targets/") else path}"'

    def _fares(self, error: BridgeError | None) -> None:
        if error is not None and not self._failing:
            log.error("registry_unavailable", error=str(error))
        elif error is None and self._failing:
            log.info("registry_available_again")
        self._failing = error is not None


def _matches(header: str | None, etag: str) -> bool:
    return header is not None and (header.strip() == "*" or etag in {one.strip() for one in header.split(",")})


def _media_type(path: str) -> str:
    return "application/json" if path.startswith("metadata/") else "application/octet-stream"


def _refusal(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return Response(text, status, {"cache-control": "no-store", **(headers or {})}, media_type="text/plain")


def create_app(
    files: Files,
    metrics: RegistryMetrics,
    *,
    requests_per_minute: float,
    monotonic: Callable[[], float] = time.monotonic,
    refusal: Refusal = anybody,
) -> Starlette:
    """Make the application.

    Args:
        files: the repository.
        metrics: what is counted.
        requests_per_minute: from one address.
        monotonic: seconds of a steady clock.
        refusal: asked before each answer, and within long ones.
    """
    endpoint = _Endpoint(files, metrics, requests_per_minute, monotonic, refusal)
    return Starlette(routes=[Route("/{path:path}", endpoint, methods=["GET", "HEAD"])])
