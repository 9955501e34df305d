import subprocess
import sys
from threading import Thread

from structlog.testing import capture_logs

from gateway.sources.base import Drops, block_size


def test_drops_are_counted_by_reason_and_told_once() -> None:
    drops = Drops("dock")
    with capture_logs() as logs:
        drops.count("torn")
        drops.count("torn", 4, detail="x")
        drops.count("late", 0)
        drops.count("dark")
    assert drops.by_reason() == {"torn": 5, "dark": 1}
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("capture_dropped", "torn"),
        ("capture_dropped", "dark"),
    ]


def test_no_drop_is_lost_between_threads() -> None:
    drops = Drops("dock")

    def count() -> None:
        for _ in range(10_000):
            drops.count("torn")

    threads = [Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drops.by_reason() == {"torn": 40_000}


def test_blocks_hold_a_twentieth_of_a_second_unless_configured() -> None:
    assert block_size(3200, None) == 160
    assert block_size(1, None) == 1
    assert block_size(0.1, None) == 1
    assert block_size(3200, 32) == 32


def test_a_gateway_loads_only_the_libraries_of_the_sources_it_has() -> None:
    script = """
import sys
from pathlib import Path
from gateway.config import HealthSource, ReplaySource
from gateway.sources.base import open_source
from gateway.sources.capture import CaptureThread
open_source("machine", HealthSource())
open_source("press", ReplaySource(file=Path("data.csv"), rate_hz=1))
print([name for name in ("cv2", "pymodbus", "serial") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
