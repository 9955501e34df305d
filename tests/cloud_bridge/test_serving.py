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
