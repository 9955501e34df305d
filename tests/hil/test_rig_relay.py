"""The rig's network link in user space: it carries, and it can be slow, silent or cut."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from hil.rig.relay import Relay


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends everything back; yields its port."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while piece := client.recv(65536):
                client.sendall(piece)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                threading.Thread(target=answer, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5.0)


def through(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=5.0)


def received(client: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = client.recv(65536)
        if not piece:
            break
        found += piece
    return found


def test_bytes_pass_both_ways_and_are_counted(echo: int) -> None:
    content = bytes(range(256)) * 4096
    with Relay(echo) as relay, through(relay) as client:
        threading.Thread(target=client.sendall, args=(content,), daemon=True).start()
        assert received(client, len(content)) == content
        assert (relay.carried_up, relay.carried_down) == (len(content), len(content))


def test_the_end_of_one_direction_leaves_the_other_open(echo: int) -> None:
    with Relay(echo) as relay, through(relay) as client:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert received(client, 100) == b"question"


def test_a_cut_link_ends_connections_and_refuses_new_ones_until_it_is_mended(echo: int) -> None:
    with Relay(echo) as relay:
        with through(relay) as client:
            client.sendall(b"one")
            assert received(client, 3) == b"one"
            relay.cut()
            assert relay.is_cut
            with contextlib.suppress(ConnectionError):
                assert client.recv(1) == b""
        with contextlib.suppress(ConnectionError), through(relay) as client:
            assert client.recv(1) == b""
        relay.mend()
        with through(relay) as client:
            client.sendall(b"two")
            assert received(client, 3) == b"two"


def test_a_slow_link_takes_the_time_that_its_rate_says(echo: int) -> None:
    content = bytes(64 * 1024)
    with Relay(echo) as relay, through(relay) as client:
        relay.quality.bytes_per_second = 128 * 1024
        begin = time.monotonic()
        threading.Thread(target=client.sendall, args=(content,), daemon=True).start()
        received(client, len(content))
        assert time.monotonic() - begin >= 0.4


def test_a_silent_link_takes_everything_and_delivers_nothing(echo: int) -> None:
    with Relay(echo) as relay, through(relay) as client:
        relay.quality.silent = True
        client.sendall(b"lost")
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(1)
        relay.mend()
        client.settimeout(5.0)
        client.sendall(b" and found")
        assert received(client, 14) == b"lost and found", (
            "late, and without a hole, as TCP brings it over a bad network"
        )


def test_a_connection_that_is_being_made_when_the_link_is_cut_is_ended_too(
    echo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Relay(echo) as relay:
        connect = socket.create_connection

        def slowly(address: tuple[str, int], timeout: float) -> socket.socket:
            made = connect(address, timeout)
            if address[1] == echo:
                relay.cut()
            return made

        monkeypatch.setattr("hil.rig.relay.socket.create_connection", slowly)
        with contextlib.suppress(ConnectionError), connect(("127.0.0.1", relay.port), 5.0) as client:
            client.sendall(b"?")
            assert client.recv(1) == b""
        assert relay.carried_down == 0


def test_a_target_that_does_not_listen_is_a_refused_connection_and_no_end_of_the_relay(echo: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Relay(port) as relay:
        with contextlib.suppress(ConnectionError), through(relay) as client:
            assert client.recv(1) == b""
        relay.target = echo
        with through(relay) as client:
            client.sendall(b"now")
            assert received(client, 3) == b"now"
