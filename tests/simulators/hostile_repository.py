"""A TUF repository with all its keys, and an HTTP server for it that can be as bad as wished.

`SignedRepository` publishes what it is told to, also what it should not: old versions, too few signatures.
`HostileServer` serves any files by path; its knobs can be turned while it runs.
"""

import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

NOW: Final = datetime(2026, 11, 21, 12, tzinfo=UTC)
ROLES: Final = ("root", "timestamp", "snapshot", "targets")


class SignedRepository:
    """Keys and metadata of a repository. `files` is what a server gives out, by path.

    Knobs: the signed parts `root`, `timestamp`, `snapshot` and `targets`, to be changed before `publish`.
    """

    def __init__(self, now: datetime = NOW, *, hashes: bool = True) -> None:
        self.now = now
        self.hashes = hashes
        self.files: dict[str, bytes] = {}
        self.signers: dict[str, list[CryptoSigner]] = {
            "root": [CryptoSigner.generate_ed25519() for _ in range(3)],
            **{role: [CryptoSigner.generate_ed25519()] for role in ROLES[1:]},
        }
        self.root = Root(expires=now + timedelta(days=730), consistent_snapshot=True)
        for role in ROLES:
            for signer in self.signers[role]:
                self.root.add_key(signer.public_key, role)
        self.root.roles["root"].threshold = 2
        self.timestamp = Timestamp(version=1, expires=now + timedelta(days=7), snapshot_meta=MetaFile(1))
        self.snapshot = Snapshot(version=1, expires=now + timedelta(days=30))
        self.targets = Targets(version=1, expires=now + timedelta(days=365))
        self.anchor = self.publish_root()
        for role in ("targets", "snapshot", "timestamp"):
            self.put(role)

    # ---- what a repository does --------------------------------------------------------------------------

    def signed(self, role: str, *, signers: list[CryptoSigner] | None = None) -> bytes:
        """Return a role's present state with the signatures of its keys, or of others."""
        metadata: Metadata[Any] = Metadata(getattr(self, role))
        for signer in self.signers[role] if signers is None else signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def publish_root(self) -> bytes:
        content = self.signed("root")
        self.files[f"metadata/{self.root.version}.root.json"] = content
        return content

    def publish(self, *, targets: bool = True, snapshot: bool = True, timestamp: bool = True) -> None:
        """Raise the versions of these roles by one, and serve them."""
        if targets:
            self.targets.version += 1
            self.put("targets")
        if snapshot:
            self.snapshot.version += 1
            self.put("snapshot")
        if timestamp:
            self.timestamp.version += 1
            self.put("timestamp")

    def put(self, role: str) -> None:
        """Sign and serve a role as it is, and name it in the one above."""
        content = self.signed(role)
        if role == "timestamp":
            self.files["metadata/timestamp.json"] = content
            return
        version = getattr(self, role).version
        self.files[f"metadata/{version}.{role}.json"] = content
        meta = MetaFile(version)
        if self.hashes:
            meta = MetaFile(version, len(content), {"sha256": hashlib.sha256(content).hexdigest()})
        if role == "targets":
            self.snapshot.meta["targets.json"] = meta
        else:
            self.timestamp.snapshot_meta = meta

    def rotate(self, role: str, count: int = 1) -> list[CryptoSigner]:
        """Give a role new keys in the root (which is not published yet); return the old ones."""
        old = self.signers[role]
        for signer in old:
            self.root.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = [CryptoSigner.generate_ed25519() for _ in range(count)]
        for signer in self.signers[role]:
            self.root.add_key(signer.public_key, role)
        return old

    def add_file(self, path: str, content: bytes, custom: Mapping[str, Any] | None = None) -> None:
        """Sign for a file from the next `publish` on, and serve it."""
        digest = hashlib.sha256(content).hexdigest()
        unrecognized = {} if custom is None else {"custom": dict(custom)}
        self.targets.targets[path] = TargetFile(len(content), {"sha256": digest}, path, unrecognized)
        directory, _, name = path.rpartition("/")
        self.files[self.place(path)] = content
        assert self.place(path) == "/".join(filter(None, ("targets", directory, f"{digest}.{name}")))

    def place(self, path: str) -> str:
        """Return where a file is served."""
        directory, _, name = path.rpartition("/")
        digest = self.targets.targets[path].hashes["sha256"]
        return "/".join(filter(None, ("targets", directory, f"{digest}.{name}")))

    def add_release(
        self,
        name: str,
        version: str,
        *,
        token: int = 1,
        hardware: tuple[str, ...] = (),
        sealed: bytes = b"sealed weights",
        weights: bytes = b"weights",
    ) -> str:
        """Add a release with one artefact and one golden pair; return the path of its sealed artefact."""
        folder = f"models/{name}/{version}"
        golden = {"golden-input.bin": b"\x01", "golden-output.bin": b"\x02"}
        plain = {"sha256": hashlib.sha256(weights).hexdigest(), "size_bytes": len(weights)}
        manifest = {
            "name": name,
            "version": version,
            "deployment_token": token,
            "artefacts": [{"target": "cpu-int8", "file": "model.tflite", **plain}],
            "input": {"kind": "image", "height": 1, "width": 1},
            "output": {"kind": "score", "threshold": 0.5},
            "golden": [
                {
                    "target": "cpu-int8",
                    "input": "golden-input.bin",
                    "output": "golden-output.bin",
                    "input_sha256": hashlib.sha256(golden["golden-input.bin"]).hexdigest(),
                    "output_sha256": hashlib.sha256(golden["golden-output.bin"]).hexdigest(),
                }
            ],
        }
        self.add_file(
            f"{folder}/manifest.json",
            json.dumps(manifest).encode(),
            {"kind": "manifest", "name": name, "version": version, "token": token, "hardware": list(hardware)},
        )
        for file, content in golden.items():
            self.add_file(f"{folder}/{file}", content, {"kind": "golden"})
        path = f"{folder}/model.tflite.sealed"
        self.add_file(path, sealed, {"kind": "artefact", "target": "cpu-int8", "packed": "", **plain})
        return path

    def save(self, directory: Path) -> None:
        """Write everything that is served into a directory, as on a USB stick."""
        for path, content in self.files.items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


@dataclass
class Knobs:
    """How a server misbehaves, for paths that contain `only`. Everything off: it behaves."""

    only: str = ""
    status: int | None = None  # answers with this, and no file
    location: str = "https://elsewhere.invalid/"  # where a redirect leads to
    endless: bool = False  # goes on sending after the file's end, until the peer leaves
    drip_seconds: float | None = None  # one byte each so many seconds
    drip_headers_seconds: float | None = None  # one byte of the headers each so many seconds
    silent_after: int | None = None  # sends so many bytes, then nothing, and keeps the connection
    cut_after: int | None = None  # closes the connection after so many bytes of a body
    ignore_ranges: bool = False
    wrong_range: bool = False  # says that it sends the range, and sends the beginning
    extra: bytes = b""  # follows the file
    replace: bytes | None = None  # is sent instead of the file
    cuts_left: int | None = None  # so often `cut_after` holds; None: always
    words: bytes = b""  # the body of an answer that is no file


@dataclass(frozen=True)
class Request:
    """One that was made."""

    path: str
    range: str | None
    if_range: str | None


@dataclass
class HostileServer:
    """Serves `files` on a free port of loopback; tells every request, and how many bytes of bodies were sent."""

    files: dict[str, bytes]
    knobs: Knobs = field(default_factory=Knobs)
    context: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    sent_bytes: int = 0
    connections: int = 0
    _closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        scheme = "http" if self.context is None else "https"
        return f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator["HostileServer"]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                try:
                    outer._answer(self)
                except OSError:  # the peer has left
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                return

            def get_request(self) -> tuple[socket.socket, Any]:
                connection, address = super().get_request()
                outer.connections += 1
                connection.settimeout(30)
                if outer.context is not None:
                    connection = outer.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                return connection, address

        self._server = Server(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._closing.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join(5)

    # ---- one answer --------------------------------------------------------------------------------------

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(handler.path.removeprefix("/"))
        self.requests.append(Request(path, handler.headers["range"], handler.headers["if-range"]))
        knobs = self.knobs if self.knobs.only in path else Knobs()
        content = self.files.get(path) if knobs.replace is None else knobs.replace
        if knobs.status is not None or content is None:
            described = {"content-length": str(len(knobs.words)), "location": knobs.location}
            self._head(handler, knobs, knobs.status or 404, described)
            self._body(handler, knobs, knobs.words)
            return
        content += knobs.extra
        begin, status = 0, 200
        headers = {"etag": f'"{hashlib.sha256(content).hexdigest()[:16]}"'}
        wanted = handler.headers["range"]
        if wanted and not knobs.ignore_ranges and handler.headers["if-range"] in (None, headers["etag"]):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin = int(first)
            if begin >= len(content) > 0:
                self._head(handler, knobs, 416, {"content-length": "0"})
                return
            end = min(int(last) + 1 if last else len(content), len(content))
            status = 206
            headers["content-range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            content = content[: end - begin] if knobs.wrong_range else content[begin:end]
            if knobs.wrong_range:
                headers["content-range"] = f"bytes 0-{end - begin - 1}/{end}"
        if knobs.endless:
            headers["connection"] = "close"
            handler.close_connection = True
        else:
            headers["content-length"] = str(len(content))
        self._head(handler, knobs, status, headers)
        self._body(handler, knobs, content)

    def _head(self, handler: BaseHTTPRequestHandler, knobs: Knobs, status: int, headers: Mapping[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items())]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        if knobs.drip_headers_seconds is None:
            handler.wfile.write(head)
            return
        for at in range(len(head)):
            handler.wfile.write(head[at : at + 1])
            if self._closing.wait(knobs.drip_headers_seconds):
                raise ConnectionResetError

    def _body(self, handler: BaseHTTPRequestHandler, knobs: Knobs, content: bytes) -> None:
        if knobs.drip_seconds is not None:
            for at in range(len(content)):
                self._send(handler, content[at : at + 1])
                if self._closing.wait(knobs.drip_seconds):
                    raise ConnectionResetError
            return
        if knobs.silent_after is not None:
            self._send(handler, content[: knobs.silent_after])
            self._closing.wait()
            raise ConnectionResetError
        if knobs.cut_after is not None and len(content) > knobs.cut_after and knobs.cuts_left != 0:
            if knobs.cuts_left is not None:
                knobs.cuts_left -= 1
            self._send(handler, content[: knobs.cut_after])
            raise ConnectionResetError
        self._send(handler, content)
        while knobs.endless and not self._closing.is_set():
            self._send(handler, bytes(65536))

    def _send(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        self.sent_bytes += len(content)  # first: the other side may have all of it before this thread goes on
        handler.wfile.write(content)
        handler.wfile.flush()
