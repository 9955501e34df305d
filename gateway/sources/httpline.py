"""HTTP requests to a camera whose connection another thread may cut at any moment, from the first byte on.

`urllib` hands a connection out only when the header of the answer is whole, and each byte of it starts the time-out of
the socket anew: a camera that sends one now and then would be listened to for days.
"""

import http.client
import os
import socket
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from threading import Lock


class Line:
    """The connection that there is at the moment: redirections and logins make several in a row."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._socket: socket.socket | None = None
        self._is_cut = False

    def made(self, connection: socket.socket) -> None:
        """Take note of a new connection, on the thread that has made it.

        Raises:
            ConnectionAbortedError: nobody wants it any more.
        """
        own = socket.socket(fileno=os.dup(connection.fileno()))  # TLS takes the other one away
        with self._lock:
            before, self._socket = self._socket, own
            is_cut = self._is_cut
        if before is not None:
            before.close()
        if is_cut:
            raise ConnectionAbortedError("closed meanwhile")

    def cut(self) -> None:
        """End what waits for an answer, now and later; from any thread."""
        with self._lock:
            self._is_cut = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the connection back."""
        with self._lock:
            before, self._socket = self._socket, None
        if before is not None:
            before.close()


class _Connection(http.client.HTTPConnection):
    line: Line

    def connect(self) -> None:
        super().connect()
        self.line.made(self.sock)


class _SecureConnection(http.client.HTTPSConnection, _Connection):
    """Told before the handshake of TLS, which may be dripped as well."""


def _on(line: Line, kind: type[_Connection]) -> Callable[..., _Connection]:
    def connection(host: str, *, timeout: float) -> _Connection:
        made = kind(host, timeout=timeout)
        made.line = line
        return made

    return connection


class _Http(urllib.request.HTTPHandler):
    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_on(self._line, _Connection), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_on(self._line, _SecureConnection), req)


def opener_on(line: Line, url: str, username: str | None, password: str) -> urllib.request.OpenerDirector:
    """Return what opens an address on a line: http and https, with Basic and Digest logins."""
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    if username is not None:
        passwords.add_password(None, url, username, password)
    opener = urllib.request.OpenerDirector()
    for handler in (
        # No proxy handler: cameras are on the site, whatever the environment says about the way outside.
        _Http(line),
        _Https(line),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPBasicAuthHandler(passwords),
        urllib.request.HTTPDigestAuthHandler(passwords),
    ):
        opener.add_handler(handler)
    return opener
