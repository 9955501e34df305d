"""What the collector of cycles costs everybody, before and after the heap has settled."""

import subprocess
import sys

OBJECTS = 400_000
SHORTER = 10
"""So many times as short at least; measured: a thousand times."""
PROGRAM = f"""
import gc, time
from gateway import heap

kept = [[number] for number in range({OBJECTS})]

def full():
    start = time.perf_counter()
    gc.collect()
    return time.perf_counter() - start

full()
before = min(full() for _ in range(3))
heap.settle()
after = min(full() for _ in range(3))
cycle = []
cycle.append(cycle)
del cycle
print(before, after, gc.collect())
"""


def test_a_full_collection_no_longer_looks_at_what_was_there_and_still_finds_what_came() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    before, after, found = map(float, done.stdout.split())
    assert after < before / SHORTER
    assert found == 1
