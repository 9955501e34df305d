"""A TCP proxy on loopback that resets its connections, or holds what they carry, when told to."""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from types import TracebackType
from typing import Literal, Self

Way = Literal["there", "back"]


class TcpProxy:
    """Carries bytes to a port of loopback; belongs to the event loop."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._gates: dict[Way, asyncio.Event] = {"there": asyncio.Event(), "back": asyncio.Event()}
        self.release()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._carried = 0  # connections
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.release()
        while self._carried:  # each ends by itself; a task that is cancelled would be told as an error
            self.reset()
            await asyncio.sleep(0.01)

    def reset(self) -> None:
        """End all connections with a TCP reset, not with a goodbye."""
        for writer in self._open:
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._open.clear()

    def hold(self, *ways: Way) -> None:
        """Carry nothing on, as a link that is cut: nobody is told, and what is sent meanwhile arrives afterwards."""
        for way in ways:
            self._gates[way].clear()

    def release(self) -> None:
        """Carry everything on."""
        for gate in self._gates.values():
            gate.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._carried += 1
        try:
            await self._connect(reader, writer)
        finally:
            self._carried -= 1

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # nobody listens there now
            writer.transport.abort()
            return
        ends = {writer, back}
        self._open |= ends
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, back, self._gates["there"]))
                group.create_task(_pump(there, writer, self._gates["back"]))
        finally:
            self._open -= ends
            for end in ends:
                end.transport.abort()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    try:
        while data := await source.read(65_536):
            await gate.wait()
            target.write(data)
            await target.drain()
    except OSError:  # reset
        pass
    target.transport.abort()


class Link:
    """Proxies in front of some ports, in a thread of their own, for a test that blocks."""

    def __init__(self, targets: Sequence[int]) -> None:
        self._targets = targets
        self._proxies: list[TcpProxy] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="link", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(10.0), "the proxies do not listen"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._end.set)
        self._thread.join(10.0)

    def port_to(self, target: int) -> int:
        """Return the port behind which a target is."""
        return self._proxies[self._targets.index(target)].port

    @contextmanager
    def cut(self, *ways: Way) -> Iterator[None]:
        """Carry nothing this way, or these ways, until the block ends."""
        self._all(lambda proxy: proxy.hold(*ways))
        try:
            yield
        finally:
            self._all(TcpProxy.release)

    def reset(self) -> None:
        """End all connections with a TCP reset."""
        self._all(TcpProxy.reset)

    def _all(self, act: Callable[[TcpProxy], None]) -> None:
        for proxy in self._proxies:
            self._call(lambda proxy=proxy: act(proxy))  # type: ignore[misc]  # bound at once

    def _call(self, act: Callable[[], None]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(act)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            self._proxies = [await stack.enter_async_context(TcpProxy(target)) for target in self._targets]
            self._up.set()
            await self._end.wait()
