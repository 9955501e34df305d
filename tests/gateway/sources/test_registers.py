import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import ModbusRegister
from gateway.sources.registers import MAX_WORDS, decode, requests_for


@pytest.mark.parametrize(
    ("register", "words", "value"),
    [
        (ModbusRegister(address=0), [0xFFFE], -2),
        (ModbusRegister(address=0, kind="uint16"), [0xFFFE], 65534),
        (ModbusRegister(address=0, kind="int32"), [0xFFFF, 0xFFFE], -2),
        (ModbusRegister(address=0, kind="uint32"), [0x0001, 0x0002], 65538),
        (ModbusRegister(address=0, kind="uint32", word_order="little"), [0x0002, 0x0001], 65538),
        (ModbusRegister(address=0, kind="float32"), [0x4148, 0x0000], 12.5),
        (ModbusRegister(address=0, kind="float32", word_order="little"), [0x0000, 0x4148], 12.5),
        (ModbusRegister(address=0, scale=0.1, offset=-40), [225], -17.5),
    ],
)
def test_values_are_decoded_by_kind_word_order_and_scale(
    register: ModbusRegister, words: list[int], value: float
) -> None:
    assert decode(register, [*words, 0xDEAD]) == pytest.approx(value)


def test_registers_that_adjoin_are_asked_for_together_and_gaps_are_not_read() -> None:
    registers = [
        ModbusRegister(address=10, kind="float32"),
        ModbusRegister(address=3),
        ModbusRegister(address=12),
        ModbusRegister(address=12, table="input"),
        ModbusRegister(address=14),
    ]
    asked = {(request.table, request.address, request.words) for request in requests_for(registers)}
    assert asked == {("holding", 3, 1), ("holding", 10, 3), ("holding", 14, 1), ("input", 12, 1)}


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from(["int16", "int32"])), min_size=1, max_size=200))
def test_every_value_is_asked_for_once_within_a_request_that_holds_it(places: list[tuple[int, str]]) -> None:
    registers = [ModbusRegister(address=address, kind=kind) for address, kind in places]  # type: ignore[arg-type]
    requests = requests_for(registers)
    columns = [column for request in requests for column, _ in request.values]
    assert sorted(columns) == list(range(len(registers)))
    for request in requests:
        assert 1 <= request.words <= MAX_WORDS
        for _, register in request.values:
            assert request.address <= register.address
            words = 1 if register.kind == "int16" else 2
            assert register.address + words <= request.address + request.words
