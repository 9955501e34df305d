"""What was acknowledged to a producer survives SIGKILL at any moment."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.wire.messages import CLASSES, Event, decode
from tests.gateway.outbox.outbox_kit import endless, opened, rows, until

ROOT = Path(__file__).parents[3]


def kill_once(file: Path, log: Path, mode: str, seed: int) -> None:
    """Let the victim run until it has told something and some time more, then kill it."""
    size = log.stat().st_size if log.exists() else 0
    victim = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("kill_victim.py")), str(file), str(log), mode, str(seed)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
    )
    try:
        until(lambda: (log.exists() and log.stat().st_size > size) or victim.poll() is not None, 60)
        time.sleep(random.Random(seed).uniform(0.0, 0.25))
        assert victim.poll() is None
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()


def missing(file: Path, log: Path) -> list[tuple[str, int]]:
    """Return what was promised and is neither in the store nor acknowledged by the bridge, or is another row."""
    promised: dict[tuple[str, int], str] = {}
    marks: dict[str, int] = dict.fromkeys(CLASSES, 0)
    for line in log.read_text().splitlines():
        match line.split():
            case ["r", name, seq, text]:
                promised[name, int(seq)] = text
            case ["a", name, mark] if name in marks:
                marks[name] = max(marks[name], int(mark))
    held: dict[tuple[str, int], str] = {}
    with opened(file, endless()) as outbox:
        for record_class in CLASSES:
            found = rows(outbox, record_class)
            seqs = [row.seq for row in found]
            assert seqs == list(range(outbox.heads()[record_class][0], outbox.heads()[record_class][1] + 1))
            assert outbox.stats().classes[record_class].rows == len(seqs)
            for row in found:
                held[record_class, row.seq] = decode(row.body, Event).event_id if row.kind == "event" else "-"
        assert outbox.stats().quarantined == 0
    return [key for key, text in promised.items() if key[1] > marks[key[0]] and held.get(key) != text]


def test_nothing_acknowledged_is_lost_in_twenty_kills(file: Path, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    log = tmp_path / "log"
    for at in range(20):
        kill_once(file, log, "committed", seed + at)
        assert missing(file, log) == []
    assert len(log.read_text().splitlines()) > 500


def test_control_acknowledging_before_the_commit_loses(tmp_path: Path) -> None:
    for at in range(20):
        file, log = tmp_path / str(at) / "outbox.db", tmp_path / f"log{at}"
        kill_once(file, log, "early", at)
        if missing(file, log):
            return
    pytest.fail("twenty kills lost nothing although receipts came too early: the test sees nothing")
