import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import SerialSource
from gateway.errors import SourceLostError
from gateway.sources.serial_line import SerialLines
from tests.simulators.serial_line import SerialDevice


@pytest.fixture
def device() -> Iterator[SerialDevice]:
    made = SerialDevice()
    yield made
    made.unplug()


def lines(device: SerialDevice, **configured: object) -> SerialLines:
    configured = {"channels": 2, "rate_hz": 100, "silent_after_seconds": 2} | configured
    return SerialLines("scale", SerialSource(device=device.path, **configured))  # type: ignore[arg-type]


def read_all(device: SerialDevice, data: bytes, rows: int) -> tuple[list[list[float]], dict[str, int]]:
    """Let the device send something after a first line that may be torn; return the samples and the drops."""
    source = lines(device)
    # Sent once the port is open, as opening throws away what was there.
    threading.Timer(0.2, device.write, (b"9 9\n" + data,)).start()
    samples: list[list[float]] = []
    for block in source.captures():
        samples += block.samples.tolist()
        if len(samples) >= rows:
            break
    source.close()
    return samples, source.drops


@pytest.mark.parametrize(
    "data", [b"1,2\n3,4\n", b"1;2\r\n3;4\r\n", b" 1\t 2 \n\n3  4\n", b"1.0,2e0\n+3,4.\n", b"1, 2\n3 ,4\n"]
)
def test_lines_are_read_with_every_usual_separator(device: SerialDevice, data: bytes) -> None:
    assert read_all(device, data, 2) == ([[1, 2], [3, 4]], {})


def test_bad_lines_are_counted_by_reason_and_the_good_ones_kept(device: SerialDevice) -> None:
    data = b"1,2\nboot v1.2\n3\n3,nan\n1,2,3\n\xff\xfe,1\n3,4\n"
    samples, drops = read_all(device, data, 2)
    assert samples == [[1, 2], [3, 4]]
    assert drops == {"not_a_number": 2, "wrong_channels": 2, "not_finite": 1}


def test_lines_of_a_wrong_number_of_channels_are_all_counted(device: SerialDevice) -> None:
    source = lines(device, silent_after_seconds=0.6)
    threading.Timer(0.2, device.write, (b"x\n1,2,3\n4,5,6\n",)).start()
    with pytest.raises(SourceLostError, match=r"no line of 2 numbers for 0\.6 s .*wrong_channels.*baud rate"):
        next(source.captures())
    assert source.drops == {"wrong_channels": 2}


def test_the_first_line_is_thrown_away_as_its_beginning_may_be_missing(device: SerialDevice) -> None:
    source = lines(device, channels=1)
    threading.Timer(0.2, device.write, (b"2.5\n12.5\n",)).start()
    assert next(source.captures()).samples.tolist() == [[12.5]]
    source.close()


def test_a_line_that_comes_in_pieces_is_put_together(device: SerialDevice) -> None:
    source = lines(device)
    for at, piece in enumerate((b"x\n1", b"2.", b"5,3", b"\n")):
        threading.Timer(0.2 + 0.1 * at, device.write, (piece,)).start()
    assert next(source.captures()).samples.tolist() == [[12.5, 3]]
    source.close()


def test_noise_without_a_line_end_does_not_fill_the_memory(device: SerialDevice) -> None:
    source = lines(device, silent_after_seconds=10)
    stop = threading.Event()

    def noise() -> None:
        for _ in range(20):
            device.write(b"\x00\x55" * 512)
        while not source.drops and not stop.wait(0.01):
            device.write(b"\x55" * 64)
        device.write(b"\n9,9\n1,2\n")

    timer = threading.Timer(0.2, noise)
    timer.start()
    assert next(source.captures()).samples.tolist()[-1] == [1, 2]
    stop.set()
    timer.join()
    assert source.drops["overlong_line"] >= 1
    source.close()


def test_a_fast_device_gives_many_samples_in_one_block(device: SerialDevice) -> None:
    data = b"".join(b"%d,%d\n" % (number, -number) for number in range(500))
    samples, drops = read_all(device, data, 500)
    assert [sample[0] for sample in samples] == list(range(500))
    assert drops == {}


def test_a_port_that_cannot_be_opened_is_named_with_the_remedy(device: SerialDevice) -> None:
    device.unplug()
    with pytest.raises(SourceLostError, match=r"cannot be opened.*check the cable.*dialout"):
        next(lines(device).captures())


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300))
def test_no_noise_on_the_line_is_ever_more_than_a_drop(noise: bytes) -> None:
    source = SerialLines("scale", SerialSource(device="/dev/null", channels=2, rate_hz=1))  # type: ignore[arg-type]
    samples = source.parsed(noise)
    assert samples.shape[1] == 2
    assert np.isfinite(samples).all()
