"""The first program of the machine whose power is cut: mounts the disk, then is the outbox's user for ever.

It runs from the initial RAM disk. Lines that begin with `@ ` are marks as those of `outbox_victim`; here the kernel's
serial console takes them out of the machine. `--modules` runs a little on the host instead, and names the modules
that were needed.
"""

import ctypes
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.outbox.evictions import row_of
from gateway.outbox.store import Outbox
from gateway.values import Receipt
from gateway.wire.messages import Eviction, decode
from tests.chaos.storage.outbox_oracle import digest_of
from tests.chaos.storage.outbox_victim import SETTINGS
from tests.gateway.outbox.outbox_kit import MIB, event

_FINIT_MODULE = 313  # x86-64
_MODULES = Path("/modules")


def tell(line: str) -> None:
    """Write a mark to the console."""
    os.write(1, f"@ {line}\n".encode())


def produce(file: Path, goes_on: Callable[[], bool]) -> None:
    """Store records and acknowledge some, telling everything."""
    outbox = Outbox.open(file, SETTINGS)
    tell(f"epoch {outbox.epoch}")
    tell(f"held {sum(each.rows for each in outbox.stats().classes.values())}")
    number = outbox.heads()["event"][1] * 10
    while goes_on():
        number += 1
        entries = [event(number), event(number, "measure"), event(number, "critical")]
        digests = [digest_of(row[2], row[1], row[3], row[4]) for row in (_row(entry) for entry in entries)]
        receipts: Sequence[Receipt] = outbox.put(entries)
        parts = [f"{r.record_class} {r.seq} {digest}" for r, digest in zip(receipts, digests, strict=True)]
        tell("r " + " ".join(parts))
        if number % 10 == 0:
            run = outbox.read("critical", 0, 1000, MIB)
            assert run is not None
            for row in run.rows:  # what was told of evictions is gone with the rows that say it
                if row.kind == "eviction" and row.seq <= receipts[-1].seq:
                    gone = decode(row.body, Eviction)
                    tell(f"e {gone.record_class} {gone.first_seq} {gone.last_seq}")
            tell(f"a critical {receipts[-1].seq}")
            outbox.acknowledge("critical", outbox.epoch, receipts[-1].seq)
    outbox.close()


def _row(entry: object) -> tuple[int, int, str, bytes, bytes]:
    return row_of(entry.kind, entry.body, entry.recorded_at_ns, entry.blob)  # type: ignore[attr-defined]


def start() -> None:
    """Do what an init does before anything runs."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, place in (("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/tmp")):
        Path(place).mkdir(exist_ok=True)
        libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None)
    for name in json.loads((_MODULES / "order.json").read_text()):
        descriptor = os.open(_MODULES / name, os.O_RDONLY)
        libc.syscall(_FINIT_MODULE, descriptor, b"", 0)
        os.close(descriptor)
    deadline = time.monotonic() + 30
    while not Path("/dev/vda").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    Path("/data").mkdir(exist_ok=True)
    if libc.mount(b"/dev/vda", b"/data", b"ext4", 0, None) != 0:
        raise OSError(ctypes.get_errno(), "mount /dev/vda")


def main() -> None:
    try:
        start()
        produce(Path("/data/state/outbox.db"), lambda: True)
    except BaseException:  # noqa: BLE001 - the first program of a machine must not end
        traceback.print_exc()
        tell("died")
    while True:
        time.sleep(1)


if __name__ == "__main__":
    if sys.argv[1:] == ["--modules"]:
        with tempfile.TemporaryDirectory() as place:
            turns = iter(range(3))
            produce(Path(place) / "outbox.db", lambda: next(turns, None) is not None)
        files = {getattr(module, "__file__", None) for module in sys.modules.values()}
        print(json.dumps(sorted(file for file in files if file)))
    else:
        main()
