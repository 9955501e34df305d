"""A Modbus device: pymodbus's own server, on TCP or a serial line."""

import asyncio
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from pymodbus import FramerType
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

REGISTERS = 64


def float_words(value: float) -> list[int]:
    """Return the two registers that hold a float32, the high word first."""
    return list(struct.unpack(">2H", struct.pack(">f", value)))


class ModbusDevice:
    """A device with registers 0 to 63. Knobs: `words` (holding and input alike), `busy`, `requests` (a count)."""

    def __init__(self, *, serial: Path | None = None, unit: int = 1) -> None:
        self.words = [0] * REGISTERS
        self.busy = False
        self.silent = False
        self.requests: list[tuple[int, int]] = []  # (address, count)
        self._then: tuple[int, Callable[[], object]] | None = None
        self._serial = serial
        self._unit = unit
        self._loop = asyncio.new_event_loop()
        self._server: ModbusTcpServer | ModbusSerialServer | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self.plug()

    def plug(self) -> None:
        """Answer."""
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(5)

    def when_asked(self, times: int, then: Callable[[], object]) -> None:
        """Do something as soon as there are so many `requests`."""
        self._then = (times, then)

    def unplug(self) -> None:
        """Go away."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(5)

    def close(self) -> None:
        """Go away for good."""
        if self._server is not None:
            self.unplug()
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _end(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _start(self) -> None:
        device = SimDevice(
            self._unit, [SimData(0, count=REGISTERS, values=0, datatype=DataType.REGISTERS)], action=self._asked
        )
        if self._serial is not None:
            self._server = ModbusSerialServer(
                device, framer=FramerType.RTU, port=str(self._serial), baudrate=19200, ignore_missing_devices=True
            )
            await self._server.listen()
            return
        self._server = ModbusTcpServer(device, address=("127.0.0.1", self.port))
        await self._server.listen()
        transport = self._server.transport
        assert isinstance(transport, asyncio.Server)
        self.port = transport.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._server is not None
        await self._server.shutdown()  # type: ignore[no-untyped-call]  # pymodbus leaves out the None
        self._server = None

    async def _asked(
        self,
        _function: int,
        start: int,
        address: int,
        count: int,
        current: list[int],
        _written: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        self.requests.append((address, count))
        if self._then is not None and len(self.requests) >= self._then[0]:
            then, self._then = self._then[1], None
            then()
        while self.silent:
            await asyncio.sleep(0.01)
        for at in range(REGISTERS - start):
            current[at] = self.words[start + at]
        return ExcCodes.DEVICE_BUSY if self.busy else None
