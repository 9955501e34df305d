"""Reading MJPEG over HTTP: `multipart/x-mixed-replace`, as cameras and camera servers send it.

The parts are read here and only the pictures are decoded by OpenCV: so a time-out is one, a broken picture costs just
itself, a header that announces terapixels is not believed, and credentials go into a header instead of an address.
"""

import http.client
import urllib.error
from email.message import Message
from urllib.parse import urlsplit, urlunsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.errors import SourceLostError
from gateway.shown import shown
from gateway.sources.camera import GarbageFrameError, checked_picture, checked_size
from gateway.sources.httpline import Line, opener_on
from gateway.sources.videocapture import silence_opencv

MAX_LINE_BYTES = 8192
MAX_HEADER_LINES = 64
MAX_PART_BYTES = 16 * 1024 * 1024
MAX_SKIPPED_LINES = 10_000
"""Lines between two parts, after which the stream is not what it says it is."""

_START_OF_IMAGE = b"\xff\xd8"
_END_OF_IMAGE = b"\xff\xd9"
# ITU T.81, table B.1: all start-of-frame markers; C4, C8 and CC in between mean something else.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) as a JPEG's header announces them, without decoding it."""
    at = len(_START_OF_IMAGE)
    if not data.startswith(_START_OF_IMAGE):
        raise GarbageFrameError("not_jpeg")
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise GarbageFrameError("broken_jpeg")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _WITHOUT_LENGTH:
            at += 2
            continue
        if marker in _START_OF_FRAME and at + 9 <= len(data):
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        if marker == _START_OF_SCAN:
            break
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise GarbageFrameError("broken_jpeg")


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Return the picture of a JPEG as (height, width, 3) BGR.

    Raises:
        GarbageFrameError: it is none, is cut off, or is absurdly large.
    """
    height, width = jpeg_size(data)
    checked_size(height, width)
    # The decoder fills what is missing of a torn picture with grey and does not say so.
    if _END_OF_IMAGE not in data[-64:]:
        raise GarbageFrameError("truncated_jpeg")
    try:
        # Orientation is about photographs; a camera on a wall means what it sends.
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise GarbageFrameError("broken_jpeg") from error
    return checked_picture(picture)


class MjpegGrabber:
    """An HTTP stream of JPEG pictures."""

    def __init__(self, url: str, username: str | None, password: str, timeout_seconds: float) -> None:
        self.device = shown(url)
        self._url = without_login(url)
        self._username = username
        self._password = password
        self._timeout_seconds = timeout_seconds
        self._response: http.client.HTTPResponse | None = None
        self._connection = Line()
        self._boundary = b""
        self._at_part = b""  # not empty: the boundary was read, the headers of the part come next

    def open(self) -> None:
        """Ask for the stream."""
        silence_opencv()
        try:
            # Only http:// and https:// come here, and their opener knows no other scheme.
            opener = opener_on(self._connection, self._url, self._username, self._password)
            response = opener.open(self._url, timeout=self._timeout_seconds)
        except urllib.error.HTTPError as error:
            error.close()
            remedy = "check username and password_file" if error.code in (401, 403) else "check the path of the address"
            raise SourceLostError(f"camera {self.device} answers {error.code} {error.reason}; {remedy}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = shown(str(getattr(error, "reason", error)))
            raise SourceLostError(
                f"camera {self.device} cannot be reached: {reason}; check the address, its power and the network"
            ) from error
        self._response = response
        self._boundary = self._boundary_of(response.headers)

    def read(self) -> NDArray[np.uint8]:
        """Return the next picture."""
        return decode_jpeg(self._next_part())

    def release(self) -> None:
        """Close the connection."""
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def interrupt(self) -> None:
        """End what waits, or a camera that sends a byte now and then would be listened to for ever."""
        self._connection.cut()

    def _boundary_of(self, headers: Message) -> bytes:
        boundary = headers.get_param("boundary")
        if headers.get_content_maintype() != "multipart" or not isinstance(boundary, str) or not boundary:
            raise SourceLostError(
                f"camera {self.device} answers with {headers.get_content_type()}, not with an MJPEG stream; "
                "look up the path of the stream in the camera's manual"
            )
        # RFC 2046 §5.1.1 puts two dashes before it in the stream; some cameras have them in the header already.
        return b"--" + boundary.encode("latin-1", "replace").lstrip(b"-")

    def _next_part(self) -> bytes:
        skipped = 0
        while not self._at_part and not self._is_boundary(self._line()):
            skipped += 1
            if skipped > MAX_SKIPPED_LINES:
                raise SourceLostError(f"camera {self.device} sends no parts of an MJPEG stream; restart it")
        self._at_part = b""
        length = self._length()
        if length is None:
            return self._until_boundary()
        if not 0 < length <= MAX_PART_BYTES:
            raise GarbageFrameError("absurd_length")
        data = self._receive(length)
        if len(data) < length:
            raise self._ended()
        return data

    def _is_boundary(self, line: bytes) -> bool:
        return line.startswith(b"--") and (b"--" + line.lstrip(b"-")).startswith(self._boundary)

    def _length(self) -> int | None:
        """Read the headers of a part; return its length if they tell it."""
        length = None
        for _ in range(MAX_HEADER_LINES):
            line = self._line().strip()
            if not line:
                return length
            key, _colon, value = line.partition(b":")
            if key.strip().lower() == b"content-length":
                if not value.strip().isdigit() or len(value) > 20:
                    raise GarbageFrameError("absurd_length")
                length = int(value)
        raise GarbageFrameError("broken_part")

    def _until_boundary(self) -> bytes:
        """Read a part that does not tell its length: to a picture's end at the end of a line, or to the next part."""
        data = bytearray()
        while not data.endswith((_END_OF_IMAGE + b"\r\n", _END_OF_IMAGE + b"\n")):
            line = self._line()
            rest, self._at_part, _ = line.partition(self._boundary)
            data += rest
            if self._at_part:
                break
            if len(data) > MAX_PART_BYTES:
                raise GarbageFrameError("absurd_length")
        return bytes(data)

    def _line(self) -> bytes:
        assert self._response is not None
        try:
            line = self._response.readline(MAX_LINE_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._ended(error) from error
        if not line:
            raise self._ended()
        return line

    def _receive(self, length: int) -> bytes:
        assert self._response is not None
        try:
            return self._response.read(length)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._ended(error) from error

    def _ended(self, error: Exception | None = None) -> SourceLostError:
        what = f"stopped sending: {error}" if error else "ended the stream"
        return SourceLostError(f"camera {self.device} {what}; check its power, its cable and the network")


def without_login(url: str) -> str:
    """Return a URL without user and password, which go into a header; to be used, never to be shown."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
