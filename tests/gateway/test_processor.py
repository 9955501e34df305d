"""How long a thread has waited for a processor."""

import os
import subprocess
import sys
import threading
import time

from gateway.processor import waited_ns


def test_a_thread_that_shares_its_processor_waits_for_it_and_one_that_sleeps_does_not() -> None:
    waits: list[int] = []

    def share(processor: int) -> None:
        os.sched_setaffinity(0, {processor})  # of this thread alone
        before, deadline = waited_ns(), time.monotonic() + 30
        while (waited := waited_ns() - before) < 20_000_000 and time.monotonic() < deadline:
            pass
        waits.append(waited)

    processor = min(os.sched_getaffinity(0))
    spins = f"import os\nos.sched_setaffinity(0, {{{processor}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spins]) as other:
        try:
            thread = threading.Thread(target=share, args=(processor,), name="test-share")
            thread.start()
            thread.join()
        finally:
            other.kill()
    assert waits[0] >= 20_000_000
    before = waited_ns()
    began = time.monotonic()
    time.sleep(0.2)
    assert waited_ns() - before < (time.monotonic() - began) * 1e9 - 150_000_000, "sleeping is no waiting"
