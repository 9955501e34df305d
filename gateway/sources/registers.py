"""Modbus registers: which to ask for together, and what their bits mean. Pure."""

import struct
from dataclasses import dataclass
from typing import Literal

from gateway.config import ModbusRegister

MAX_WORDS = 125
"""Modbus Application Protocol 1.1b3 §6.3, §6.4: the most registers one request may ask for."""

_FORMATS = {"int16": ">h", "uint16": ">H", "int32": ">i", "uint32": ">I", "float32": ">f"}


@dataclass(frozen=True, slots=True)
class Request:
    """A run of registers to be read at once, and the values in it."""

    table: Literal["holding", "input"]
    address: int
    words: int
    values: tuple[tuple[int, ModbusRegister], ...]  # the column of each value, and its register


def words_of(register: ModbusRegister) -> int:
    """Return how many 16-bit registers a value takes."""
    return struct.calcsize(_FORMATS[register.kind]) // 2


def requests_for(registers: list[ModbusRegister]) -> list[Request]:
    """Group registers that adjoin. A gap is never read over: many devices refuse addresses they do not have."""
    ordered = sorted(enumerate(registers), key=lambda item: (item[1].table, item[1].address))
    requests: list[Request] = []
    for column, register in ordered:
        end = register.address + words_of(register)
        last = requests[-1] if requests else None
        if (
            last is not None
            and last.table == register.table
            and register.address <= last.address + last.words
            and end - last.address <= MAX_WORDS
        ):
            words = max(last.words, end - last.address)
            requests[-1] = Request(last.table, last.address, words, (*last.values, (column, register)))
        else:
            requests.append(Request(register.table, register.address, end - register.address, ((column, register),)))
    return requests


def decode(register: ModbusRegister, words: list[int]) -> float:
    """Return the value of a register, scaled, from the words that begin at its address."""
    own = words[: words_of(register)]
    if register.word_order == "little":
        own = own[::-1]
    (value,) = struct.unpack(_FORMATS[register.kind], struct.pack(f">{len(own)}H", *own))
    return float(value) * register.scale + register.offset
