import asyncio
import socket
import urllib.request

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

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
