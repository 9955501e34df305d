"""Modbus devices, polled over TCP or a serial line (RTU)."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray
from pymodbus.client import ModbusSerialClient, ModbusTcpClient
from pymodbus.constants import ExcCodes
from pymodbus.exceptions import ModbusException

from gateway.config import ModbusSource
from gateway.errors import ConfigError, SourceLostError
from gateway.sources.base import ClosableSource, WallClock, block_size
from gateway.sources.pacing import polled_blocks
from gateway.sources.registers import Request, decode, requests_for
from gateway.values import SampleBlock

_TCP_PORT = 502
_SERIAL_OPTIONS = ("baudrate", "parity", "stopbits", "bytesize")
_TRANSIENT = frozenset({ExcCodes.ACKNOWLEDGE, ExcCodes.DEVICE_BUSY})

Client = ModbusTcpClient | ModbusSerialClient


class ModbusPoller(ClosableSource):
    """Reads the configured registers at a rate; a column for each, in the order of the configuration."""

    def __init__(self, name: str, settings: ModbusSource, *, wall_clock: WallClock = time.time_ns) -> None:
        """Raise ConfigError for an address that is none; the device is opened by `captures`."""
        super().__init__(name)
        self._settings = settings
        self._requests = requests_for(settings.registers)
        self._wall_clock = wall_clock
        self._client = self._client_for(settings.device)
        # Its own log repeats each failure, at each attempt; what matters is told once, by ours.
        logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

    def captures(self) -> Iterator[SampleBlock]:
        """Yield blocks (n, registers)."""
        try:
            if not self._client.connect():
                raise self._lost("cannot be reached")
            rate_hz = self._settings.rate_hz
            yield from polled_blocks(
                self.name,
                self._read,
                rate_hz=rate_hz,
                shape=(block_size(rate_hz, None), len(self._settings.registers)),
                closing=self._closing,
                drops=self._drops,
                wall_clock=self._wall_clock,
            )
        except SourceLostError:
            if not self._closing.is_set():
                raise
        finally:
            self._client.close()  # type: ignore[no-untyped-call]  # pymodbus leaves out the None

    def close(self) -> None:
        """Make `captures` return soon, over TCP also out of a request that is not answered.

        A serial port is left alone: pyserial cancels a read by writing to a descriptor that may be closed meanwhile.
        """
        super().close()
        connection = self._client.socket
        if isinstance(connection, socket.socket):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _read(self, row: NDArray[np.float32]) -> bool:
        for request in self._requests:
            words = self._ask(request)
            if words is None:
                return False
            for column, register in request.values:
                row[column] = decode(register, words[register.address - request.address :])
        return True

    def _ask(self, request: Request) -> list[int] | None:
        """Read one run of registers; None if the device asks for patience."""
        client = self._client
        ask = client.read_holding_registers if request.table == "holding" else client.read_input_registers
        try:
            answer = ask(request.address, count=request.words, device_id=self._settings.unit)
        except (ModbusException, OSError) as error:
            raise self._lost(f"does not answer: {error}") from error
        if answer.isError():
            code = answer.exception_code
            if code in _TRANSIENT:
                self._drops.count("busy")
                return None
            reason = ExcCodes(code).name.lower() if code in set(ExcCodes) else f"exception {code}"
            raise self._lost(
                f"refuses {request.table} registers {request.address} to {request.address + request.words - 1} "
                f"({reason}: see `registers`)"
            )
        if len(answer.registers) != request.words:
            self._drops.count("short_answer")
            return None
        return list(answer.registers)

    def _lost(self, what: str) -> SourceLostError:
        return SourceLostError(
            f"source {self.name}: Modbus device {self._settings.device} unit {self._settings.unit} {what}; "
            "check its power, the cable, the address and the unit number"
        )

    def _client_for(self, device: str) -> Client:
        parts = urlsplit(device)
        timeout = self._settings.timeout_seconds
        try:
            if parts.scheme == "tcp" and parts.hostname:
                return ModbusTcpClient(parts.hostname, port=parts.port or _TCP_PORT, timeout=timeout, retries=1)
            if parts.scheme == "serial" and parts.path:
                options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
                unknown = options.keys() - _SERIAL_OPTIONS
                if unknown:
                    raise ValueError(f"unknown {', '.join(sorted(unknown))}; there are {', '.join(_SERIAL_OPTIONS)}")
                return ModbusSerialClient(
                    parts.path,
                    baudrate=int(options.get("baudrate", "19200")),
                    parity=options.get("parity", "N"),
                    stopbits=int(options.get("stopbits", "1")),
                    bytesize=int(options.get("bytesize", "8")),
                    timeout=timeout,
                    retries=1,
                )
        except ValueError as error:
            raise ConfigError(f"source {self.name}: device {device}: {error}") from error
        raise ConfigError(
            f"source {self.name}: device {device} is neither tcp://host:502 nor serial:///dev/ttyUSB0?baudrate=19200"
        )
