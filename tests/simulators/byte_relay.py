"""Stands between a client and a broker and counts every byte of each direction, as a meter of the network would."""

import asyncio
from types import TracebackType


class ByteRelay:
    """Use as an asynchronous context manager; `url` is where it listens. Knob: `cut` ends all connections."""

    def __init__(self, port: int) -> None:
        """`port`: of the broker behind, on loopback."""
        self._port = port
        self.up = 0  # bytes from clients
        self.down = 0
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"mqtt://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def __aenter__(self) -> "ByteRelay":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, onward_writer}
        loop = asyncio.get_running_loop()
        for task in (
            loop.create_task(self._carry(reader, onward_writer, upwards=True)),
            loop.create_task(self._carry(onward_reader, writer, upwards=False)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upwards: bool) -> None:
        try:
            while data := await reader.read(65_536):
                if upwards:
                    self.up += len(data)
                else:
                    self.down += len(data)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
