import time
from collections.abc import Iterator
from itertools import islice

import pytest

from gateway.config import ModbusRegister, ModbusSource
from gateway.errors import ConfigError, SourceLostError
from gateway.sources.modbus import ModbusPoller
from tests.simulators.modbus import ModbusDevice, float_words
from tests.simulators.serial_line import NullModem


@pytest.fixture
def device() -> Iterator[ModbusDevice]:
    made = ModbusDevice()
    yield made
    made.close()


REGISTERS = [
    ModbusRegister(address=4, kind="float32"),
    ModbusRegister(address=0, scale=0.1),
    ModbusRegister(address=1, kind="uint16", table="input"),
]


def poller(device: ModbusDevice, registers: list[ModbusRegister] | None = None, **settings: object) -> ModbusPoller:
    settings = {"rate_hz": 50, "timeout_seconds": 0.5} | settings
    return ModbusPoller(
        "boiler",
        ModbusSource(
            device=f"tcp://127.0.0.1:{device.port}",
            registers=registers or REGISTERS,
            **settings,  # type: ignore[arg-type]
        ),
    )


def test_registers_become_columns_in_the_configured_order_with_few_requests(device: ModbusDevice) -> None:
    device.words[4:6] = float_words(71.25)
    device.words[0] = 0x10000 - 55
    device.words[1] = 65000
    source = poller(device, rate_hz=10)
    blocks = list(islice(source.captures(), 3))
    source.close()
    for block in blocks:
        assert block.samples.tolist() == [pytest.approx([71.25, -5.5, 65000])]
    assert set(device.requests) == {(0, 1), (4, 2), (1, 1)}


def test_polls_keep_their_rate(device: ModbusDevice) -> None:
    source = poller(device, rate_hz=20)
    begin = time.monotonic()
    blocks = list(islice(source.captures(), 21))
    assert 0.95 < time.monotonic() - begin < 2
    assert blocks[-1].captured_at_ns - blocks[0].captured_at_ns == pytest.approx(1e9, abs=5e8)
    source.close()


def test_a_device_that_is_busy_costs_a_sample_and_not_the_connection(device: ModbusDevice) -> None:
    source = poller(device, rate_hz=20)
    captures = source.captures()
    next(captures)
    device.busy = True
    device.requests.clear()
    device.when_asked(3, lambda: setattr(device, "busy", False))
    next(captures)
    assert source.drops["busy"] >= 1
    source.close()


def test_a_value_that_is_not_a_number_costs_the_sample(device: ModbusDevice) -> None:
    device.words[4:6] = float_words(float("nan"))
    source = poller(device, rate_hz=20)
    captures = source.captures()
    device.when_asked(3, lambda: device.words.__setitem__(slice(4, 6), float_words(1.0)))
    assert next(captures).samples[0, 0] == 1.0
    assert source.drops["not_finite"] >= 1
    source.close()


def test_a_register_that_the_device_does_not_have_is_named(device: ModbusDevice) -> None:
    with pytest.raises(SourceLostError, match=r"holding registers 200 to 200 \(illegal_address: see `registers`"):
        next(poller(device, [ModbusRegister(address=200)]).captures())


def test_another_unit_number_does_not_answer(device: ModbusDevice) -> None:
    with pytest.raises(SourceLostError, match=r"unit 9 .*check .*the unit number"):
        next(poller(device, unit=9).captures())


def test_a_device_that_does_not_answer_is_lost_within_its_time_out(device: ModbusDevice) -> None:
    source = poller(device)
    captures = source.captures()
    next(captures)
    device.silent = True
    begin = time.monotonic()
    with pytest.raises(SourceLostError, match="does not answer"):
        next(captures)
    assert time.monotonic() - begin < 3
    device.silent = False


def test_closing_interrupts_a_request_that_is_not_answered(device: ModbusDevice) -> None:
    source = poller(device, timeout_seconds=30)
    captures = source.captures()
    next(captures)
    device.silent = True
    device.requests.clear()
    device.when_asked(1, source.close)
    begin = time.monotonic()
    assert list(captures) == []
    assert time.monotonic() - begin < 2
    device.silent = False


def test_a_serial_device_is_polled_as_rtu() -> None:
    line = NullModem()
    device = ModbusDevice(serial=line.paths[0], unit=7)
    device.words[4:6] = float_words(3.5)
    settings = ModbusSource(
        device=f"serial://{line.paths[1]}?baudrate=19200",
        unit=7,
        registers=[ModbusRegister(address=4, kind="float32")],
        rate_hz=10,
        timeout_seconds=1.0,
    )
    source = ModbusPoller("boiler", settings)
    assert next(source.captures()).samples.tolist() == [[3.5]]
    source.close()
    device.close()
    line.unplug()


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.5",
        "udp://10.0.0.5",
        "tcp://",
        "tcp://host:99999",
        "serial://",
        "serial:///dev/x?speed=9",
        "serial:///dev/x?baudrate=fast",
    ],
)
def test_an_address_that_is_none_is_a_mistake_in_the_configuration(address: str) -> None:
    with pytest.raises(ConfigError, match="source boiler: device"):
        ModbusPoller("boiler", ModbusSource(device=address, registers=[ModbusRegister(address=0)]))
