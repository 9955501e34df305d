"""Gives RAUC one bundle over HTTP on loopback, and fetches it from the repository part by part as RAUC asks.

So RAUC streams, and adaptive bundles cost what differs, while the gateway keeps what it keeps for all it fetches: its
certificate, the budget of the link, and what is signed. RAUC's own process for the network runs as nobody, which
must not read the gateway's key. What is relayed is not compared with the digest of the whole file, for the whole file
need not pass. The signature part at its end is: it holds the root of the hash tree that RAUC checks each block by.
"""

import hashlib
import secrets
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Final

import structlog

from gateway.ota.errors import MismatchError, OtaError, StoppedError, UnreachableError
from gateway.ota.fetch_budget import ASK_BYTES, FEATURE, Purse, Spend
from gateway.ota.ways import Way

log = structlog.get_logger()

PIECE_BYTES: Final = 1024 * 1024
AHEAD_BYTES: Final = 1024 * 1024
"""At most so much is read ahead of RAUC, whose kernel asks for 128 kB at a time and waits for each."""
_RUN_BYTES: Final = 128 * 1024
"""Who has read so much without a gap reads a whole file; what an index has found missing is mostly shorter."""
PAUSES_SECONDS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Between tries at a source that does not answer, or is asked too often; RAUC waits for so long."""
_CLIENT_SECONDS: Final = 120.0


@dataclass(slots=True)
class Relayed:
    """What passed, and what went wrong first."""

    bytes: int = 0
    error: OtaError | None = None


@dataclass(frozen=True, slots=True)
class Streamed:
    """A bundle: where it is, how long, and the digest of its last bytes."""

    place: str
    size_bytes: int
    tail_bytes: int
    tail_sha256: str


class Reader:
    """Reads parts of a bundle from a way, one at a time; the part at the end only as it is signed."""

    def __init__(
        self, way: Way, meter: Spend, bundle: Streamed, seen: Relayed, *, pauses: Sequence[float] = PAUSES_SECONDS
    ) -> None:
        self._pauses = pauses
        self._way = way
        self._meter = meter
        self._bundle = bundle
        self._seen = seen
        self._lock = threading.Lock()  # a way belongs to one thread at a time
        self._tail: bytes | None = None
        self._held, self._held_at = b"", 0  # what was read ahead, and its offset
        self._next = -1  # where the last part that was asked for ended
        self._run_bytes = 0  # read up to there without a gap
        self._lost: UnreachableError | None = None
        self.closed = False

    @property
    def size_bytes(self) -> int:
        """Of the bundle."""
        return self._bundle.size_bytes

    def check(self) -> None:
        """Fetch the signature part and compare it.

        Raises:
            MismatchError: it is not what was signed.
            FetchError: not now.
        """
        bundle = self._bundle
        begin = bundle.size_bytes - bundle.tail_bytes
        with self._lock:
            tail = b"".join(self._fetched(begin, bundle.tail_bytes + 1))
        if len(tail) != bundle.tail_bytes or hashlib.sha256(tail).hexdigest() != bundle.tail_sha256:
            raise MismatchError(f"{bundle.place}: its signature part is not the one that the repository has signed for")
        self._tail = tail

    def close(self) -> None:
        """Read no more; when this returns, nobody uses the way any more.

        RAUC may go on for a while with an installation that was given up here, and ask for more.
        """
        self.closed = True
        if self._lock.acquire(timeout=_CLIENT_SECONDS):
            self._lock.release()

    def read(self, offset: int, length: int) -> Generator[bytes, None, None]:
        """Yield a part of the bundle. Raises as `check`.

        Once a part could not be had for all tries, nothing can: RAUC asks six times for each block, and then goes on
        without what makes an update small. A new installation costs less than that, and begins when the link is back.
        """
        assert self._tail is not None, "check() comes first"
        if self._lost is not None:
            raise self._lost
        begin = self._bundle.size_bytes - len(self._tail)
        body = max(0, min(length, begin - offset))
        with self._lock:
            yield from self._body(offset, body, begin)
        if length > body:
            at = offset + body - begin
            yield self._tail[at : at + length - body]

    def _body(self, offset: int, length: int, end: int) -> Generator[bytes, None, None]:
        """Yield a part of what is in front of the signature part, which begins at `end`; then read on for a while.

        How far is half of what was read without a gap, and nothing while RAUC picks the blocks that it lacks: what is
        fetched in vain is at most half of what was of use just before. Where bytes are counted, nothing is read ahead.
        """
        self._run_bytes = length + (self._run_bytes if offset == self._next else 0)
        self._next = offset + length
        held, at = self._held, self._held_at
        self._held = b""
        if at <= offset < at + len(held):
            mine = held[offset - at :][:length]
            yield mine
            offset, length = offset + len(mine), length - len(mine)
            if not length:
                self._held, self._held_at = held, at
                return
        ahead = 0
        if self._run_bytes >= _RUN_BYTES and self._meter.room(FEATURE) is None:
            ahead = min(self._run_bytes // 2, AHEAD_BYTES, end - offset - length)
        self._held_at = offset + length
        try:
            for piece in self._fetched(offset, length + ahead):
                mine, rest = piece[:length], piece[length:]
                length -= len(mine)
                self._held += rest
                if mine:
                    yield mine
        except OtaError as error:
            if length:  # else nobody has missed anything yet
                if isinstance(error, UnreachableError):
                    self._lost = error
                raise

    def _fetched(self, offset: int, length: int) -> Generator[bytes, None, None]:
        end, pauses = offset + length, iter(self._pauses)
        while offset < end:
            if self.closed:
                raise StoppedError(f"{self._bundle.place} is not relayed any more")
            asked = min(offset + PIECE_BYTES, end)
            try:
                for piece in self._asked(offset, asked - offset):
                    offset += len(piece)
                    yield piece
            except UnreachableError:
                pause = next(pauses, None)
                if pause is None:
                    raise
                time.sleep(pause)
                continue
            if offset < asked:
                return  # the file ends here
            pauses = iter(self._pauses)

    def _asked(self, offset: int, size: int) -> Generator[bytes, None, None]:
        place = self._bundle.place
        purse = Purse(self._meter, counted_elsewhere=self._way.counted_elsewhere)
        with purse, closing(self._way.read(place, offset, size)) as pieces:
            purse.take(size + ASK_BYTES, place)
            purse.used(ASK_BYTES, place)
            got = 0
            for piece in pieces:
                wanted = piece[: size - got]
                purse.used(len(wanted), place)
                got += len(wanted)
                self._seen.bytes += len(wanted)
                yield wanted
                if got >= size:
                    return


@contextmanager
def relay(
    way: Way, meter: Spend, bundle: Streamed, seen: Relayed, *, pauses: Sequence[float] = PAUSES_SECONDS
) -> Iterator[str]:
    """Serve a bundle while the context lasts; yields its address, which nobody can guess.

    Raises:
        MismatchError: what the source has is not what was signed.
        FetchError: the source cannot be read now.
        OSError: there is no port to listen on.
    """
    reader = Reader(way, meter, bundle, seen, pauses=pauses)
    reader.check()
    path = f"/{secrets.token_urlsafe(18)}/bundle.raucb"
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(reader, path, seen))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="os-relay", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{path}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        reader.close()


def _handler(reader: Reader, path: str, seen: Relayed) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _CLIENT_SECONDS

        def do_HEAD(self) -> None:
            """Tell how long it is."""
            self._answer(only_head=True)

        def do_GET(self) -> None:
            """Send it, or a part of it."""
            self._answer(only_head=False)

        def _answer(self, *, only_head: bool) -> None:
            if not secrets.compare_digest(self.path.encode(), path.encode()):
                self._refuse(HTTPStatus.NOT_FOUND)
                return
            size = reader.size_bytes
            part = part_of(self.headers.get("range"), size)
            if part is None:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                return
            offset, length = part
            pieces = reader.read(offset, length)
            try:
                # The first piece is fetched before the head goes out, so that what cannot be had now has a status.
                first = b"" if only_head else next(pieces, b"")
            except OtaError as error:
                self._note(error)
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
                return
            self.send_response(HTTPStatus.PARTIAL_CONTENT if "range" in self.headers else HTTPStatus.OK)
            self.send_header("content-length", str(length))
            self.send_header("accept-ranges", "bytes")
            self.send_header("content-type", "application/octet-stream")
            if "range" in self.headers:
                self.send_header("content-range", f"bytes {offset}-{offset + length - 1}/{size}")
            self.end_headers()
            if only_head:
                return
            sent = 0
            try:
                with closing(pieces):  # the way is free again when RAUC goes in the middle
                    for piece in chain([first], pieces):
                        self.wfile.write(piece)
                        sent += len(piece)
            except OtaError as error:
                self._note(error)
            except OSError:  # RAUC has gone
                self.close_connection = True
                return
            if sent < length:
                self.close_connection = True  # only the end of the connection can say that something is missing

        def _note(self, error: OtaError) -> None:
            if not reader.closed:  # after its end nobody is interested any more
                seen.error = seen.error or error

        def _refuse(self, status: HTTPStatus) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            log.debug("os_relay", request=format % args)

    return Handler


def part_of(header: str | None, size: int) -> tuple[int, int] | None:
    """Return offset and length of what is asked for; None if there is no such part."""
    if header is None:
        return 0, size
    kind, _, span = header.partition("=")
    first, dash, last = span.partition("-")
    if kind.strip() != "bytes" or not dash or not first.isdigit() or (last and not last.isdigit()):
        return None
    offset, end = int(first), min(int(last) + 1 if last else size, size)
    return (offset, end - offset) if offset < end else None
