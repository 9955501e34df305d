"""Does what `gateway.ota.patch_child` does and prints the peak of its resident memory in bytes.

By its own `VmHWM`: what the kernel tells the parent afterwards begins with what the parent had when it forked.
"""

import os
import sys

from gateway.ota import patch_child


def main() -> int:
    """Apply what the arguments say; without any, only start."""
    status = os.open("/proc/self/status", os.O_RDONLY)  # afterwards nothing can be opened any more
    code = patch_child.main(sys.argv[1:]) if sys.argv[1:] else 0
    lines = dict(line.split(":", 1) for line in os.pread(status, 1 << 16, 0).decode().splitlines())
    sys.stdout.write(f"{int(lines['VmHWM'].split()[0]) * 1024}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
