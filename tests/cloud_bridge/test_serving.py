import asyncio
import contextlib
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from cloud_bridge.errors import BridgeError
from cloud_bridge.listening import Sides
from cloud_bridge.serving import HttpServer
from hil.loopback.children import free_port
from tests.simulators.authority import Authority


async def test_an_application_is_served_until_stopped() -> None:
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"))])
    port = free_port()
    server = HttpServer("test", app, "127.0.0.1", port)

    def ask() -> bytes:
        content: bytes = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
        return content

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        while True:
            try:
                assert await asyncio.to_thread(ask) == b"here"
                break
            except OSError:
                await asyncio.sleep(0.02)
        server.stop()


async def test_an_address_in_use_is_an_error_with_its_place() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BridgeError, match=f"cannot listen on 127.0.0.1:{port}"):
            await HttpServer("test", Starlette(), "127.0.0.1", port).run()


async def test_connections_without_a_request_do_not_keep_others_out() -> None:
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"))])
    port = free_port()
    server = HttpServer("test", app, "127.0.0.1", port, request_seconds=1.0, most_of_a_side=1000)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        crowd = [await _connected(port) for _ in range(300)]  # more than are served at once
        for number, (_, writer) in enumerate(crowd):
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n" if number % 2 else b"")
        async with asyncio.timeout(20):
            while not (await _asked(port)).startswith(b"HTTP/1.1 200"):
                for _, writer in crowd[1::2]:
                    writer.write(b"x: y\r\n")  # more of the head, but never its end
                await asyncio.sleep(0.05)
        for _, writer in crowd:
            writer.close()
        server.stop()


@asynccontextmanager
async def serving(server: HttpServer) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        try:
            yield
        finally:
            server.stop()


def tls_server(directory: Path) -> tuple[HttpServer, int]:
    Authority(directory, "site").issue(directory / "server.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"))])
    port = free_port()
    return HttpServer("test", app, "127.0.0.1", port, tls=context, request_seconds=1.0), port


CLIENT_HELLO_BEGINS = b"\x16\x03\x01\x02\x00\x01"


@pytest.mark.parametrize("said", [b"", CLIENT_HELLO_BEGINS])
async def test_a_tls_handshake_that_does_not_come_ends_its_connection(tmp_path: Path, said: bytes) -> None:
    server, port = tls_server(tmp_path)
    async with serving(server):
        reader, writer = await _connected(port)
        writer.write(said)
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        trusted = ssl.create_default_context(cafile=str(tmp_path / "site.pem"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.close()


async def test_the_control_that_listens_as_the_library_does_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_bridge.serving._Server.startup", uvicorn.Server.startup)
    server, port = tls_server(tmp_path)
    async with serving(server):
        reader, writer = await _connected(port)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await reader.read()
        writer.close()


async def login(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def server_at(**settings: float) -> tuple[HttpServer, int]:
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here")), Route("/login", login, methods=["POST"])])
    port = free_port()
    return HttpServer("test", app, "127.0.0.1", port, **settings), port  # type: ignore[arg-type]  # int or float


@pytest.mark.parametrize(
    "parts",
    [
        [b"POST /login HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nx"],
        [b"POST /login HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n"],
        # Behind a whole request on the same connection, and with nothing after it.
        [b"GET / HTTP/1.1\r\nhost: a\r\n\r\nPOST /login HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nx"],
    ],
)
async def test_a_body_that_does_not_come_ends_its_connection(parts: list[bytes]) -> None:
    server, port = server_at(request_seconds=0.5)
    async with serving(server):
        reader, writer = await _connected(port)
        for part in parts:
            writer.write(part)
        async with asyncio.timeout(10):
            answer = await reader.read()  # to the end of the connection
        writer.close()
    assert b"x" not in answer.partition(b"here")[2]


async def test_a_body_that_trickles_in_ends_its_connection_too() -> None:
    server, port = server_at(request_seconds=1.0)
    async with serving(server):
        reader, writer = await _connected(port)
        writer.write(b"POST /login HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n")
        async with asyncio.timeout(10):
            while not reader.at_eof():
                writer.write(b"x")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await reader.read(1)
        writer.close()


async def test_an_answer_may_take_longer_than_its_request() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.6)
        await PlainTextResponse("late")(scope, receive, send)

    server, port = server_at(request_seconds=0.2)
    server._server.config.app = app
    async with serving(server):
        assert (await _asked(port)).endswith(b"late")


@pytest.mark.parametrize(("most", "served"), [(64, True), (1000, False)])
async def test_one_side_cannot_take_all_connections(most: int, *, served: bool) -> None:
    """The second is the control: without a share for each side the other one is turned away."""
    server, port = server_at(most_of_a_side=most)
    async with serving(server):
        crowd = [await _connected(port) for _ in range(300)]  # more than are served at once
        answer = await _asked(port, "127.0.0.2")
        for _, writer in crowd:
            writer.close()
    assert answer.startswith(b"HTTP/1.1 200") is served


async def test_a_side_gets_back_what_it_closes() -> None:
    server, port = server_at(most_of_a_side=2)
    async with serving(server):
        first, second = await _connected(port), await _connected(port)
        async with asyncio.timeout(10):
            assert await _asked(port) == b""
            first[1].close()
            second[1].close()
            while not (await _asked(port)).startswith(b"HTTP/1.1 200"):
                await asyncio.sleep(0.02)


def test_a_side_that_is_refused_again_and_again_is_told_of_once() -> None:
    now = 0.0
    sides = Sides("test", 2, lambda: now)
    with capture_logs() as logs:
        for _ in range(10):
            assert [sides.enter("a") for _ in range(4)] == [True, True, False, False]
            sides.leave("a")
            sides.leave("a")
            now += 30.0
        assert sides.enter("b")
        assert len(logs) == 1
        now += 60.0
        sides.leave("b")
    assert [(one["event"], one["side"]) for one in logs] == [
        ("connections_refused", "a"),
        ("connections_taken_again", "a"),
    ]


async def test_an_answer_of_two_parts_is_not_held_back_until_the_first_is_acknowledged() -> None:
    found: list[int] = []

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        (connection,) = server._server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        found.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await PlainTextResponse("here")(scope, _receive, send)

    port = free_port()
    server = HttpServer("test", app, "127.0.0.1", port)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        assert (await _asked(port)).endswith(b"here")
        server.stop()
    assert found == [1]


async def test_a_socket_that_was_only_listened_on_would_hold_it_back() -> None:
    found: list[int] = []  # control of the test before

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        found.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = await asyncio.start_server(serve, sock=listening)
        reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
        await reader.read()
        writer.close()
        server.close()
    assert found == [0]


async def _connected(port: int, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(5):
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            except OSError:
                await asyncio.sleep(0.02)


async def _asked(port: int, source: str = "127.0.0.1") -> bytes:
    reader, writer = await _connected(port, source)
    writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()
