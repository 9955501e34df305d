"""Serves one folder over HTTP with byte ranges, as a bundle is streamed; it can cut answers short."""

import contextlib
import re
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)$")
_PIECE: Final = 256 * 1024


class RangedServer:
    """Use as a context manager. Knobs: `refuse_next` requests answered with 503; `sent` counts the bytes."""

    def __init__(self, folder: Path) -> None:
        self.refuse_next = 0
        self.sent = 0
        self.requests = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                server.requests += 1
                file = folder / Path(self.path.lstrip("/")).name
                if server.refuse_next > 0 or not file.is_file():
                    server.refuse_next = max(0, server.refuse_next - 1)
                    self.send_response(HTTPStatus.SERVICE_UNAVAILABLE if file.is_file() else HTTPStatus.NOT_FOUND)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                size = file.stat().st_size
                wanted = _RANGE.match(self.headers.get("Range", ""))
                first, last = 0, size - 1
                if wanted:
                    first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
                    self.send_response(HTTPStatus.PARTIAL_CONTENT)
                    self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
                else:
                    self.send_response(HTTPStatus.OK)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(last - first + 1))
                self.end_headers()
                if not body:
                    return
                with file.open("rb") as content, contextlib.suppress(ConnectionError):
                    content.seek(first)
                    left = last - first + 1
                    while left > 0 and (piece := content.read(min(left, _PIECE))):
                        self.wfile.write(piece)
                        left -= len(piece)
                        server.sent += len(piece)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base's
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="ranged", daemon=True)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)
