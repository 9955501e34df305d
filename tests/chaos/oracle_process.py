"""The process that keeps the truth: what producers were promised, and what the site was told.

Started by `tests.chaos.oracle`. Producers connect to a unix socket and write a line for each record that became
durable; a subscription to `event/#` of the gateway's local broker is the second witness. Both are appended to files
that are opened here alone. Lines, in both files separated by blanks:

* `acknowledged.txt`: gateway, class, epoch, sequence number, digest
* `told.txt`: gateway, event id, revision, digest

A connection that begins with `?` is a question: the answer is one JSON object with the counts and the SHA-256 of
each file as it was written, given only when no producer has anything left to say.
"""

import argparse
import hashlib
import json
import os
import re
import selectors
import signal
import socket
import threading
from pathlib import Path
from typing import Any, Final

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from gateway.wire.errors import WireError
from gateway.wire.messages import Event, decode
from gateway.wire.topics import DEFAULT_ROOT, address_of, filter_for

_LINE: Final = re.compile(rb"(critical|event|measure|bulk) [0-9a-f]{16} [0-9]+ [0-9a-f]{32}")
_HELLO: Final = re.compile(rb"[a-z0-9-]{1,63}")


def digest_of(body: bytes, blob: bytes | None = b"") -> str:
    """Return the digest under which a record is compared, 32 hexadecimal digits."""
    return hashlib.sha256(body + b"\0" + (blob or b"")).hexdigest()[:32]


class Journal:
    """An append-only file that knows what it must contain."""

    def __init__(self, file: Path) -> None:
        # Read-only for everyone else from the first byte on; root alone could still write, and the hash would tell.
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o400)
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()
        self.lines = 0

    def append(self, lines: list[bytes]) -> None:
        """Write whole lines."""
        if not lines:
            return
        data = b"\n".join(lines) + b"\n"
        with self._lock:
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
            self._hash.update(data)
            self.lines += len(lines)

    def seal(self) -> dict[str, Any]:
        """Return the number of lines and their hash."""
        with self._lock:
            return {"lines": self.lines, "sha256": self._hash.hexdigest()}


class Producer:
    """One connection of a producer; its first line is the id of the gateway."""

    def __init__(self, sock: socket.socket, journal: Journal) -> None:
        self.sock = sock
        self._journal = journal
        self._rest = b""
        self._gateway = b""

    def read(self) -> bool:
        """Take what is there; False at the end. A line that a killed producer did not finish promises nothing."""
        try:
            data = self.sock.recv(1 << 20)
        except ConnectionResetError:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines and not self._gateway:
            self._gateway = lines.pop(0)
            if not _HELLO.fullmatch(self._gateway):
                raise SystemExit(f"not the id of a gateway: {self._gateway!r}")
        for line in lines:
            if not _LINE.fullmatch(line):
                raise SystemExit(f"not a promise: {line!r}")
        self._journal.append([self._gateway + b" " + line for line in lines])
        return bool(data)


class Registry:
    """The socket, served by one thread."""

    def __init__(self, path: Path, acknowledged: Journal, told: Journal) -> None:
        self._acknowledged, self._told = acknowledged, told
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def serve(self) -> None:
        """Serve for ever. Producers first: a question waits until all of them have been read."""
        questions: list[socket.socket] = []
        while True:
            ready = self._selector.select(0.0 if questions else None)
            busy = False
            for key, _ in ready:
                if key.data is None:
                    busy = self._welcome(questions) or busy
                else:
                    busy = True
                    if not key.data.read():
                        self._selector.unregister(key.fileobj)
                        key.data.sock.close()
            if not busy:
                for question in questions:
                    self._answer(question)
                questions.clear()

    def _welcome(self, questions: list[socket.socket]) -> bool:
        sock, _ = self._listener.accept()
        if sock.recv(1, socket.MSG_PEEK) == b"?":
            questions.append(sock)
            return False
        self._selector.register(sock, selectors.EVENT_READ, Producer(sock, self._acknowledged))
        return True

    def _answer(self, question: socket.socket) -> None:
        answer = {"acknowledged": self._acknowledged.seal(), "told": self._told.seal()}
        with question:
            question.sendall(json.dumps(answer).encode() + b"\n")


def listen(url: str, journal: Journal, root: str) -> Client:
    """Write down each event that the site is told."""

    def on_connect(client: Client, *_: Any) -> None:
        client.subscribe(filter_for("event", root=root), qos=1)

    def on_message(_client: Client, _userdata: object, message: Any) -> None:
        try:
            address = address_of(message.topic, root)
            event = decode(message.payload, Event)
        except (WireError, UnicodeDecodeError) as error:
            raise SystemExit(f"the site was told something that is no event: {error}") from error
        digest = digest_of(message.payload)
        journal.append([f"{address.gateway} {event.event_id} {event.revision} {digest}".encode()])

    client = Client(CallbackAPIVersion.VERSION2, client_id="oracle", protocol=MQTTProtocolVersion.MQTTv311)
    client.on_connect = on_connect
    client.on_message = on_message
    client.reconnect_delay_set(1, 1)
    host, _, port = url.removeprefix("mqtt://").partition(":")
    client.connect_async(host, int(port), keepalive=10)
    client.loop_start()
    return client


def main() -> None:
    """Keep the truth until terminated."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--broker", default="", help="the gateway's local broker, mqtt://host:port")
    parser.add_argument("--root", default=DEFAULT_ROOT)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # every line is written as it comes: nothing to flush
    acknowledged = Journal(options.directory / "acknowledged.txt")
    told = Journal(options.directory / "told.txt")
    registry = Registry(options.socket, acknowledged, told)
    if options.broker:
        listen(options.broker, told, options.root)
    registry.serve()


if __name__ == "__main__":
    main()
