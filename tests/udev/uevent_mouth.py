"""A program: runs a command in this network namespace, and says as udev what it reads (one JSON object a line)."""

import json
import socket
import subprocess
import sys

from tests.simulators.udev import message


def main() -> int:
    """Speak until the input ends; then end the command."""
    mouth = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)  # NETLINK_KOBJECT_UEVENT
    with subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL) as child:
        for line in sys.stdin:
            mouth.sendto(message(json.loads(line)), (0, 2))
        child.terminate()
        return child.wait(30)


if __name__ == "__main__":
    sys.exit(main())
