"""Sensors on an I²C bus that is memory (`i2c-stub`), driven by the kernel's own drivers; scripts for the guest.

The bus has no electronics, so a value is what was written into the chip's registers. Two chips are on it: a TMP006,
whose driver is of IIO, which the gateway reads; and an LM75, whose driver is of hwmon.
"""

from typing import Final

_TMP006, _LM75 = 0x40, 0x48

CHANNEL: Final = "in_temp"
"""The channel of the TMP006 in IIO."""

_WRITE: Final = """\
import ctypes, fcntl, glob, os
def write_word(chip, register, word):
    # SMBus sends the low byte first; these chips have the high byte first.
    name = next(each for each in glob.glob('/sys/bus/i2c/devices/i2c-*/name') if 'SMBus stub' in open(each).read())
    handle = os.open('/dev/' + name.split('/')[-2], os.O_RDWR)
    data = ctypes.create_string_buffer(34)
    data[0:2] = word.to_bytes(2, 'big')
    class Order(ctypes.Structure):  # struct i2c_smbus_ioctl_data
        _fields_ = [('write', ctypes.c_uint8), ('command', ctypes.c_uint8), ('size', ctypes.c_uint32),
                    ('data', ctypes.c_void_p)]
    fcntl.ioctl(handle, 0x0706, chip)  # I2C_SLAVE_FORCE: its driver has it
    fcntl.ioctl(handle, 0x0720, Order(0, register, 3, ctypes.addressof(data)))  # I2C_SMBUS, I2C_SMBUS_WORD_DATA
    os.close(handle)
"""


def _python(lines: str) -> str:
    return f"/usr/bin/python3 - <<'EOF'\n{_WRITE}{lines}\nEOF\n"


def tell_temperature(celsius: float) -> str:
    """Return the script that gives both chips a temperature."""
    ambient = (round(celsius / 0.03125) << 2) & 0xFFFF  # 14 bits in the upper part, 1/32 °C each
    board = (round(celsius / 0.5) << 7) & 0xFFFF  # 9 bits, 1/2 °C each
    return _python(f"write_word({_TMP006}, 0x01, {ambient})\nwrite_word({_LM75}, 0x00, {board})")


PLUG: Final = f"""\
set -e
modprobe -a i2c-dev industrialio
modprobe i2c-stub chip_addr={_TMP006:#x},{_LM75:#x}
udevadm settle
{
    _python(f'''
write_word({_TMP006}, 0xFE, 0x5449)  # the maker
write_word({_TMP006}, 0xFF, 0x0067)  # the chip
write_word({_TMP006}, 0x02, 0x7480)  # it converts, and has a value
''')
}
{tell_temperature(20.0)}
bus=$(dirname $(grep -l 'SMBus stub' /sys/bus/i2c/devices/i2c-*/name))
echo tmp006 {_TMP006:#x} >$bus/new_device
echo lm75 {_LM75:#x} >$bus/new_device
udevadm settle
"""
"""Solders both chips to the board."""

UNPLUG: Final = f"""\
bus=$(dirname $(grep -l 'SMBus stub' /sys/bus/i2c/devices/i2c-*/name))
echo {_TMP006:#x} >$bus/delete_device
echo {_LM75:#x} >$bus/delete_device
modprobe -r i2c-stub
"""

HWMON_LM75: Final = "cat $(dirname $(grep -lx lm75 /sys/class/hwmon/hwmon*/name))/temp1_input"
"""Prints what the LM75 says, in thousandths of a degree."""

IIO_NAME: Final = f"cat /sys/bus/i2c/devices/*-00{_TMP006:x}/iio:device*/name"
"""Prints what IIO calls the TMP006: its driver names it after its place on the bus."""

IIO_KIND: Final = (
    f"udevadm info --query=property --property=SLUICE_KIND --value "
    f"--path=$(echo /sys/bus/i2c/devices/*-00{_TMP006:x}/iio:device*)"
)
"""Prints what the rules for devices have made of the TMP006."""
