"""Scripts that the rig runs in a virtual board's guest: what QEMU cannot emulate, the guest's kernel can.

The kernel must be one with the modules `vivid` (a camera), and `dummy_hcd` and `libcomposite` (a USB port that leads
back into the same kernel).
"""

from typing import Final

from hil.rig.protocols import Scene

PLUG_CAMERA: Final = """\
set -e
modprobe vivid n_devs=1 node_types=0x1 input_types=0x0 no_error_inj=1
[ -e /sys/bus/platform/drivers/vivid/vivid.0 ] || echo vivid.0 >/sys/bus/platform/drivers/vivid/bind
udevadm settle
"""
# Not by taking the module out: that waits until nobody has the camera open, which no hand at the plug does.
UNPLUG_CAMERA: Final = """\
[ ! -e /sys/bus/platform/drivers/vivid/vivid.0 ] || echo vivid.0 >/sys/bus/platform/drivers/vivid/unbind
udevadm settle
"""

_PATTERNS: Final = {"dark": 5, "bright": 6}  # 100% Black, 100% White


def show(scene: Scene) -> str:
    """Return the script that changes the test picture of the camera, while somebody reads it or not."""
    # struct v4l2_control {u32 id; s32 value}, VIDIOC_S_CTRL, and the id of vivid's control `Test Pattern`.
    return f"""\
/usr/bin/python3 - <<'EOF'
import fcntl, glob, os, struct, sys
for node in sorted(glob.glob('/sys/class/video4linux/video*')):
    if 'vivid' in open(node + '/name').read():
        handle = os.open('/dev/' + os.path.basename(node), os.O_RDWR)
        fcntl.ioctl(handle, 0xC008561C, bytearray(struct.pack('=Ii', 0x00F0F000, {_PATTERNS[scene]})))
        sys.exit(0)
sys.exit('there is no vivid camera')
EOF
"""


_CONFIGFS: Final = "/sys/kernel/config/usb_gadget"
_BUS: Final = """\
set -e
modprobe -a libcomposite usb_f_acm
[ -d /sys/class/udc/dummy_udc.1 ] || modprobe dummy_hcd num=2
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
"""


def _gadget(name: str, vendor: str, product: str, port: int) -> str:
    """Return the script that makes a gadget with one serial function and plugs it into a port of the emulated bus."""
    return f"""\
{_BUS}
mkdir -p {_CONFIGFS}/{name}
cd {_CONFIGFS}/{name}
echo {vendor} >idVendor
echo {product} >idProduct
mkdir -p strings/0x409 configs/c.1 functions/acm.{name}
echo RIG0001 >strings/0x409/serialnumber
echo Sluice >strings/0x409/manufacturer
echo {name} >strings/0x409/product
[ -e configs/c.1/acm.{name} ] || ln -s {_CONFIGFS}/{name}/functions/acm.{name} configs/c.1/
echo dummy_udc.{port} >UDC
udevadm settle
"""


def _gone(name: str) -> str:
    return f"""\
cd {_CONFIGFS}/{name} 2>/dev/null || exit 0
echo '' >UDC
rm -f configs/c.1/acm.{name}
rmdir configs/c.1 functions/acm.{name} strings/0x409
cd / && rmdir {_CONFIGFS}/{name}
udevadm settle
"""


PLUG_ACCELERATOR: Final = _gadget("accelerator", "0x1a6e", "0x089a", 0)
"""A Coral USB accelerator as it comes out of the box: the ids of its boot loader."""

LOAD_FIRMWARE: Final = f"""\
set -e
cd {_CONFIGFS}/accelerator
echo '' >UDC
echo 0x18d1 >idVendor
echo 0x9302 >idProduct
echo dummy_udc.0 >UDC
udevadm settle
"""
"""What happens when its driver has loaded the firmware: it leaves the bus and comes back under other ids."""

UNPLUG_ACCELERATOR: Final = _gone("accelerator")

SENSOR_PORT: Final = "org.sluice.rig.sensor"
"""The virtio serial port over which the rig says what the sensor says."""

# The ids of a CDC-ACM device, as the gadget is: under those of an FTDI chip, ftdi_sio takes it where that is loaded
# first.
PLUG_SENSOR: Final = f"""\
{_gadget("sensor", "0x04d8", "0x000a", 1)}
line=/dev/ttyGS$(cat functions/acm.sensor/port_num)
stty -F $line raw -echo
systemd-run --quiet --unit=rig-sensor --property=Restart=always --property=RestartSec=0.2 \
    --property=StartLimitIntervalSec=0 sh -c "exec cat /dev/virtio-ports/{SENSOR_PORT} >$line"
"""
"""A sensor that speaks lines over a serial adapter on USB; it appears as /dev/ttyACM0."""

UNPLUG_SENSOR: Final = f"systemctl stop rig-sensor.service 2>/dev/null\n{_gone('sensor')}"
