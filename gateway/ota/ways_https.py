"""A repository behind HTTPS.

Asynchronous inside, for then each step has a total time; the time-out of a socket begins anew with each byte.
"""

import asyncio
import contextlib
import math
import ssl
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Final
from urllib.parse import quote, urlsplit

import httpx

from gateway.errors import ConfigError, GatewayError
from gateway.ota.errors import NotThereError, RangeIgnoredError, UnreachableError
from gateway.shown import shown

STEP_SECONDS: Final = 20.0
"""For connecting until the headers are there, and then for each piece."""

CLIENT_SECONDS: Final = 60.0
"""A client is used for so long, then made anew: what it shows is good for an hour, and what it believes may change."""

_Pieces = AsyncGenerator[bytes, None]
_ETAGS: Final = 64
_WORDS_BYTES: Final = 4096
"""A "not found" of at most so much is read to its end, so that its connection is used again."""
_GONE: Final = (httpx.codes.NOT_FOUND, httpx.codes.GONE)

Context = Callable[[], ssl.SSLContext]
"""Makes what is shown and believed, such as `Credentials.tls_context`; raises `GatewayError` with nothing to show."""


class HttpsWay:
    """The bridge's repository, or any server with the same files. Redirects are not followed, proxies not used."""

    counted_elsewhere = False

    def __init__(
        self,
        url: str,
        context: Context = ssl.create_default_context,
        *,
        monotonic_ns: Callable[[], int],
        step_seconds: float = STEP_SECONDS,
        schemes: tuple[str, ...] = ("https",),
    ) -> None:
        """Take an address such as `https://bridge.example:8472`; nothing is connected yet.

        Raises:
            ConfigError: it is not one.
        """
        parts = urlsplit(url)
        if parts.scheme not in schemes or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"ota.url {shown(url)!r} is not understood; write https://host:8472")
        self.url = url.rstrip("/")
        self._context = context
        self._monotonic_ns = monotonic_ns
        self._step_seconds = step_seconds
        self._runner: asyncio.Runner | None = None
        self._client: httpx.AsyncClient | None = None
        self._made_ns = 0
        self._etags: dict[str, str] = {}

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        """See `Way.read`."""
        runner, pieces = self._begin(path, offset, limit)
        try:
            while limit > 0:
                piece = runner.run(self._next(pieces))
                if not piece:
                    return
                if len(piece) >= limit:
                    self._end(runner, pieces)
                yield piece[:limit]
                limit -= len(piece)
        except NotThereError:
            raise
        except (UnreachableError, RangeIgnoredError):
            self.close()
            raise
        finally:
            if self._runner is runner:
                runner.run(pieces.aclose())

    def close(self) -> None:
        """See `Way.close`."""
        runner, client = self._runner, self._client
        self._runner = self._client = None
        if runner is not None:
            if client is not None:
                runner.run(_closed(client))
            runner.close()

    # ---- inside ------------------------------------------------------------------------------------------

    def _begin(self, path: str, offset: int, limit: int) -> tuple[asyncio.Runner, _Pieces]:
        if self._client is not None and self._monotonic_ns() - self._made_ns > CLIENT_SECONDS * 1e9:
            self.close()
        if self._runner is None or self._client is None:
            try:
                context = self._context()
            except GatewayError as error:
                raise UnreachableError(f"{self.url}: {error}") from error
            except (OSError, ssl.SSLError) as error:
                raise UnreachableError(f"{self.url}: the certificates cannot be used: {error}") from error
            self._runner = asyncio.Runner()
            self._client = httpx.AsyncClient(verify=context, trust_env=False, timeout=self._step_seconds)
            self._made_ns = self._monotonic_ns()
        return self._runner, self._pieces(self._client, path, offset, limit)

    def _end(self, runner: asyncio.Runner, pieces: _Pieces) -> None:
        """Take note of the end of an answer: only then can its connection carry the next request.

        A bundle that is streamed is asked for in thousands of parts; a handshake for each would take hours.
        """
        with contextlib.suppress(UnreachableError):  # what was asked for is here; the next request finds out
            runner.run(self._next(pieces))

    async def _next(self, pieces: _Pieces) -> bytes:
        """Return the next piece, b"" at the end."""
        try:
            async with asyncio.timeout(self._step_seconds):
                return await anext(pieces, b"")
        except TimeoutError as error:
            raise UnreachableError(f"{self.url}: silent for {self._step_seconds:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise UnreachableError(f"{self.url}: {str(error) or type(error).__name__}") from error

    async def _pieces(self, client: httpx.AsyncClient, path: str, offset: int, limit: int) -> _Pieces:
        # Without compression: what is counted, limited and resumed are the bytes of the file.
        headers = {"accept-encoding": "identity"}
        if offset:
            headers["range"] = f"bytes={offset}-{offset + limit - 1}"
            if path in self._etags:
                headers["if-range"] = self._etags[path]
        elif limit:
            headers["range"] = f"bytes=0-{limit - 1}"
        async with client.stream("GET", f"{self.url}/{quote(path)}", headers=headers) as response:
            if response.status_code in _GONE and _size_of(response) <= _WORDS_BYTES:
                # Each refresh asks for a root that is not there (TUF §5.3.3): no handshake is made anew for that.
                async for _ in response.aiter_raw():
                    pass
            self._check(response, path, offset)
            async for (
                piece
            ) in response.aiter_raw():  # as it comes: with a size, it would be held back until that is full
                yield piece

    def _check(self, response: httpx.Response, path: str, offset: int) -> None:
        status = response.status_code
        if status in _GONE:
            raise NotThereError(f"{self.url}: {path}: HTTP status {status}")
        if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise RangeIgnoredError(f"{self.url}: {path} ends before byte {offset}")
        if status == httpx.codes.OK and offset:
            raise RangeIgnoredError(f"{self.url}: {path} is sent from its beginning only, or has changed")
        if status == httpx.codes.PARTIAL_CONTENT:
            begins = response.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
            if begins != str(offset):
                raise RangeIgnoredError(f"{self.url}: {path} is sent from byte {begins[:20]!r} instead of {offset}")
        elif status != httpx.codes.OK:
            where = response.headers.get("location", "")
            hint = f", to {where[:200]!r}, which is not followed" if where else ""
            raise UnreachableError(f"{self.url}: {path}: HTTP status {status}{hint}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise UnreachableError(f"{self.url}: {path} is sent compressed though that was not asked for")
        etag = response.headers.get("etag", "")
        if etag.startswith('"'):  # a weak one does not promise the same bytes (RFC 9110 §13.1.5)
            self._etags.pop(path, None)
            self._etags[path] = etag
            if len(self._etags) > _ETAGS:
                del self._etags[next(iter(self._etags))]


def _size_of(response: httpx.Response) -> float:
    """Return how many bytes an answer announces; infinite where it does not say."""
    announced = response.headers.get("content-length", "")
    return int(announced) if announced.isascii() and announced.isdigit() else math.inf


async def _closed(client: httpx.AsyncClient) -> None:
    await client.aclose()
