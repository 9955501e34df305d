"""A small TCP proxy that stands for the link: `python -m tests.bench.proxy LISTEN TARGET`.

Commands come on standard input, one a line, and each is answered with itself: `cut` silences the link both ways
without telling anybody, as a modem without a signal does; `heal` lets it work again, and resets the connections that
were there during the cut: whoever gave them their addresses has forgotten them.
"""

import asyncio
import socket
import struct
import sys
from contextlib import suppress

CHUNK_BYTES = 256 * 1024
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends RST


class Proxy:
    """Carries bytes between whoever connects and one port of loopback."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._works = asyncio.Event()
        self._works.set()
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Carry one connection until either side ends it."""
        await self._works.wait()
        try:
            reader, server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            client.close()
            return
        pair = {client, server}
        self._open |= pair
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(client_reader, server, pair))
                group.create_task(self._carry(reader, client, pair))
        finally:
            self._open -= pair

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: set[asyncio.StreamWriter]
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                await self._works.wait()
                writer.write(chunk)
                await writer.drain()
        for each in pair:  # ends the other direction too
            each.close()

    def cut(self) -> None:
        """Carry nothing more, and say nothing."""
        self._works.clear()

    def heal(self) -> None:
        """Carry again; what was open is reset."""
        for writer in self._open:
            if (sock := writer.get_extra_info("socket")) is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        self._works.set()


async def main(listen: int, target: int) -> None:
    """Serve until standard input ends."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", listen)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print("ready", flush=True)
    async with server:
        while line := await commands.readline():
            command = line.decode().strip()
            if command == "cut":
                proxy.cut()
            elif command == "heal":
                proxy.heal()
            print(command, flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
