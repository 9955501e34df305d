import asyncio
import socket
import urllib.request

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cloud_bridge.errors import BridgeError
from cloud_bridge.serving import HttpServer


async def test_an_application_is_served_until_stopped() -> None:
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"))])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = HttpServer("test", app, "127.0.0.1", port, request_seconds=1.0)
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


async def test_an_answer_of_two_parts_is_not_held_back_until_the_first_is_acknowledged() -> None:
    found: list[int] = []

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        (connection,) = server._server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        found.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await PlainTextResponse("here")(scope, _receive, send)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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


async def _connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(5):
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)


async def _asked(port: int) -> bytes:
    reader, writer = await _connected(port)
    writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()
