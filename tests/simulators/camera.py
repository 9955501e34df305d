"""An MJPEG camera on HTTP, with knobs for everything such cameras do wrong."""

import base64
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.simulators.clips import jpeg, picture


@dataclass
class Knobs:
    """What the camera does; may be turned while it streams."""

    fps: float = 25.0
    width: int = 320
    height: int = 240
    frozen: bool = False  # the same picture for ever
    silent: bool = False  # connected, but nothing comes
    garbage: bytes | None = None  # sent in place of the picture
    with_length: bool = True  # tell the length of each part
    boundary: str = "frame"
    dashes_in_header: bool = False  # as some cameras do, against RFC 2046
    content_type: str = "multipart/x-mixed-replace"
    credentials: tuple[str, str] | None = None  # asked for by HTTP Basic
    query: str | None = None  # asked for in the address
    dribble_seconds: float = 0.0  # a byte so often, in place of everything
    header_dribble_seconds: float = 0.0  # a byte so often, in a line of the header that never ends
    claimed_length: str | None = None  # a wrong Content-Length


class MjpegCamera:
    """The camera. `url` is its address; it keeps its port over `unplug` and `plug`."""

    def __init__(self, **knobs: object) -> None:
        self.knobs = Knobs(**knobs)  # type: ignore[arg-type]  # the names are checked by the data class
        self.connections = 0
        self.sent = 0
        self._number = 0
        self._clients: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.plug()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/stream.mjpg"

    def plug(self) -> None:
        """Listen."""
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera._serve(self)

            def log_message(self, *_args: object) -> None:
                """Keep the tests' output clean."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients go away; that is what they are for."""

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def unplug(self) -> None:
        """Refuse connections and cut those there are."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.disconnect()

    def disconnect(self) -> None:
        """Cut the connections; new ones are welcome."""
        for client in list(self._clients):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        knobs = self.knobs
        self.connections += 1
        if knobs.query is not None and request.path.partition("?")[2] != knobs.query:
            request.send_error(403)
            return
        if knobs.credentials is not None:
            token = base64.b64encode(":".join(knobs.credentials).encode()).decode()
            if request.headers.get("Authorization") != f"Basic {token}":
                request.send_response(401)
                request.send_header("WWW-Authenticate", 'Basic realm="camera"')
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
        if knobs.header_dribble_seconds:
            request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
            while self._server is not None:
                request.wfile.write(b"x")
                time.sleep(knobs.header_dribble_seconds)
            return
        dashes = "--" if knobs.dashes_in_header else ""
        request.send_response(200)
        request.send_header("Content-Type", f"{knobs.content_type}; boundary={dashes}{knobs.boundary}")
        request.end_headers()
        self._clients.add(request.connection)
        try:
            self._stream(request)
        finally:
            self._clients.discard(request.connection)

    def _stream(self, request: BaseHTTPRequestHandler) -> None:
        knobs = self.knobs
        while self._server is not None:
            if knobs.dribble_seconds:
                request.wfile.write(b"x")
                time.sleep(knobs.dribble_seconds)
                continue
            if not knobs.silent:
                request.wfile.write(self._part())
                self.sent += 1
            time.sleep(1 / knobs.fps)

    def _part(self) -> bytes:
        knobs = self.knobs
        if not knobs.frozen:
            self._number += 1
        data = knobs.garbage
        if data is None:
            data = jpeg(picture(self._number, width=knobs.width, height=knobs.height))
        claimed = knobs.claimed_length or str(len(data))
        length = f"Content-Length: {claimed}\r\n" if knobs.with_length else ""
        return f"--{knobs.boundary}\r\nContent-Type: image/jpeg\r\n{length}\r\n".encode() + data + b"\r\n"
