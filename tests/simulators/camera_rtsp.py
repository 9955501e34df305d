"""An RTSP camera that sends JPEG over RTP, interleaved in the TCP connection (RFC 2326 §10.12, RFC 2435)."""

import hashlib
import re
import socket
import struct
import threading
import time
from contextlib import suppress

from tests.simulators.clips import jpeg, picture

_CHUNK_BYTES = 1400
_CLOCK_HZ = 90_000


class RtspCamera:
    """The camera. Knobs: `silent` (says nothing more), `credentials` (HTTP Digest), `unplug`, `plug`, `disconnect`."""

    def __init__(
        self,
        *,
        fps: float = 15.0,
        width: int = 320,
        height: int = 240,
        credentials: tuple[str, str] | None = None,
    ) -> None:
        self.fps = fps
        self.width = width
        self.height = height
        self.credentials = credentials
        self.silent = False
        self.frozen = False
        self.connections = 0
        self._number = 0
        self._listener: socket.socket | None = None
        self._clients: set[socket.socket] = set()
        self._port = 0
        self.plug()

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self._port}/stream"

    def plug(self) -> None:
        """Listen."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def unplug(self) -> None:
        """Refuse connections and cut those there are."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.disconnect()

    def disconnect(self) -> None:
        """Cut the connections; new ones are welcome."""
        for client in list(self._clients):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            self._clients.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        stop = threading.Event()
        try:
            requests = client.makefile("rb")
            while (request := self._request(requests)) is not None:
                method, headers = request
                client.sendall(self._answer(method, headers))
                if method == "PLAY" and self._allowed(method, headers):
                    threading.Thread(target=self._stream, args=(client, stop), daemon=True).start()
                if method == "TEARDOWN":
                    return
        except OSError:
            return
        finally:
            stop.set()
            self._clients.discard(client)
            client.close()

    @staticmethod
    def _request(stream: object) -> tuple[str, dict[str, str]] | None:
        assert hasattr(stream, "readline")
        assert hasattr(stream, "read")
        line = stream.readline()
        while line.startswith(b"$"):  # an RTCP packet of the client's; its bytes may hold line ends
            rest = line[1:]
            while len(rest) < 3 or len(rest) < 3 + int.from_bytes(rest[1:3], "big"):
                more = stream.read(1)
                if not more:
                    return None
                rest += more
            line = rest[3 + int.from_bytes(rest[1:3], "big") :] + stream.readline()
        if not line:
            return None
        method = line.split(b" ", 1)[0].decode()
        headers = {}
        while (line := stream.readline().strip()) != b"":
            key, _, value = line.decode().partition(":")
            headers[key.lower()] = value.strip()
        return method, headers

    def _allowed(self, method: str, headers: dict[str, str]) -> bool:
        if self.credentials is None:
            return True
        told = dict(re.findall(r'(\w+)="([^"]*)"', headers.get("authorization", "")))
        username, password = self.credentials

        def md5(text: str) -> str:
            return hashlib.md5(text.encode()).hexdigest()

        who, what = md5(f"{username}:camera:{password}"), md5(f"{method}:{told.get('uri', '')}")
        expected = md5(f"{who}:nonce:{what}")
        return told.get("username") == username and told.get("response") == expected

    def _answer(self, method: str, headers: dict[str, str]) -> bytes:
        head = f"CSeq: {headers.get('cseq', '0')}\r\n"
        if method != "OPTIONS" and not self._allowed(method, headers):
            head += 'WWW-Authenticate: Digest realm="camera", nonce="nonce"\r\n'
            return f"RTSP/1.0 401 Unauthorized\r\n{head}\r\n".encode()
        body = ""
        if method == "OPTIONS":
            head += "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n"
        elif method == "DESCRIBE":
            body = (
                "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\n"
                "c=IN IP4 0.0.0.0\r\na=control:track1\r\n"
            )
            head += f"Content-Base: {self.url}/\r\nContent-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP":
            head += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1;timeout=60\r\n"
        else:
            head += "Session: 1\r\n"
        return f"RTSP/1.0 200 OK\r\n{head}\r\n{body}".encode()

    def _stream(self, client: socket.socket, stop: threading.Event) -> None:
        sequence = 0
        begin = time.monotonic()
        while not stop.wait(1 / self.fps):
            if self.silent:
                continue
            if not self.frozen:
                self._number += 1
            stamp = int((time.monotonic() - begin) * _CLOCK_HZ) & 0xFFFFFFFF
            data = jpeg(picture(self._number, width=self.width, height=self.height))
            for packet in _packets(data, self.width, self.height):
                last, payload = packet
                sequence = (sequence + 1) & 0xFFFF
                rtp = struct.pack(">BBHII", 0x80, 26 | (0x80 if last else 0), sequence, stamp, 0x51CE) + payload
                try:
                    client.sendall(b"$\x00" + struct.pack(">H", len(rtp)) + rtp)
                except OSError:
                    return


def _packets(data: bytes, width: int, height: int) -> list[tuple[bool, bytes]]:
    """Split a JPEG (4:2:0, standard Huffman tables) as RFC 2435 says: quantization tables in the first packet."""
    tables, scan = b"", b""
    at = 2
    while at < len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == 0xDB:
            while body:
                tables, body = tables + body[1:65], body[65:]
        at += 2 + length
        if marker == 0xDA:
            scan = data[at:].removesuffix(b"\xff\xd9")
            break
    packets = []
    for offset in range(0, len(scan), _CHUNK_BYTES):
        payload = struct.pack(">IBBBB", offset, 1, 255, width // 8, height // 8)
        if offset == 0:
            payload += struct.pack(">BBH", 0, 0, len(tables)) + tables
        packets.append((offset + _CHUNK_BYTES >= len(scan), payload + scan[offset : offset + _CHUNK_BYTES]))
    return packets
