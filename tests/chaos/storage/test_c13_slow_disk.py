"""A disk that is slow, or stands still: inference does not notice, memory stays bounded, nothing is lost."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from gateway.outbox.store import Outbox
from gateway.recorder import Recorder
from gateway.values import Receipt
from tests.chaos.experiment import Experiment
from tests.chaos.storage.conftest import MakeDisk
from tests.gateway.inference.graphs import dense
from tests.gateway.outbox.outbox_kit import event, numbers, settings, until

INPUTS = 2400
HIDDEN = 1500
SLACK_SECONDS = 0.002  # a paired quantile of a shared machine may move by a scheduling slice or two


class Pipeline:
    """The inference thread of a gateway: infer, hand the decision over, again; it keeps each turn's seconds."""

    def __init__(self, record: Callable[[int], None]) -> None:
        random = np.random.default_rng(1)
        weights = random.normal(size=(HIDDEN, INPUTS)).astype(np.float32)
        self._interpreter = Interpreter(model_content=dense(weights, np.zeros(HIDDEN, np.float32)), num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        self._record = record
        self._sample = random.normal(size=tuple(self._input["shape"])).astype(np.float32)
        self.made = 0

    def turn(self) -> float:
        """Infer once and hand the decision over; returns the seconds."""
        began = time.perf_counter()
        self._interpreter.set_tensor(self._input["index"], self._sample)
        self._interpreter.invoke()
        self.made += 1
        self._record(self.made)
        return time.perf_counter() - began

    def p99(self, seconds: float) -> float:
        """Run for a while at 100 Hz; return the 99th percentile."""
        turns = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            turns.append(self.turn())
            time.sleep(max(0.0, 0.01 - turns[-1]))
        return float(np.quantile(turns, 0.99))


@contextmanager
def recording(outbox: Outbox) -> Iterator[tuple[Recorder, list[int]]]:
    recorder = Recorder(outbox)
    stored: list[int] = []
    try:
        yield recorder, stored
    finally:
        recorder.close()


def paired_p99(
    disk_slow: Callable[[float], None], pipeline: Pipeline, delay: float, rounds: int
) -> tuple[float, float]:
    """Measure A-B-A-B: the median of the quantiles with the disk as it is, and with the slow one."""
    found: dict[float, list[float]] = {0.0: [], delay: []}
    for _ in range(rounds):
        for seconds in (0.0, delay):
            disk_slow(seconds)
            found[seconds].append(pipeline.p99(2.0))
    disk_slow(0.0)
    return float(np.median(found[0.0])), float(np.median(found[delay]))


@pytest.mark.parametrize("delay", [0.2, 2.0])
def test_c13_a_slow_disk_does_not_slow_the_inference(experiment: Experiment, fuse_disk: MakeDisk, delay: float) -> None:
    disk = fuse_disk()
    outbox = Outbox.open(disk.mountpoint / "state" / "outbox.db", settings())
    with recording(outbox) as (recorder, stored):

        def record(number: int) -> None:
            recorder.submit([event(number)], lambda receipts: stored.extend(r.seq for r in receipts))

        pipeline = Pipeline(record)
        pipeline.p99(1.0)
        fast, slow = paired_p99(lambda s: disk.set(fsync_seconds=s), pipeline, delay, experiment.scaled(2, 10))
        experiment.log("p99", delay=delay, fast=fast, slow=slow)
        print(f"p99 with a sync of {delay} s: {slow * 1000:.2f} ms, without: {fast * 1000:.2f} ms")
        until(lambda: len(stored) == pipeline.made, 30)
        assert stored == list(range(1, pipeline.made + 1))
        assert numbers(outbox, "event") == stored
    assert slow < 2 * fast + SLACK_SECONDS


def test_c13_control_a_pipeline_that_waits_for_each_commit_is_slowed(
    experiment: Experiment, fuse_disk: MakeDisk
) -> None:
    disk = fuse_disk()
    outbox = Outbox.open(disk.mountpoint / "state" / "outbox.db", settings())

    def record(number: int) -> None:
        outbox.put([event(number)])

    pipeline = Pipeline(record)
    pipeline.p99(1.0)
    fast, slow = paired_p99(lambda s: disk.set(fsync_seconds=s), pipeline, 0.2, 1)
    outbox.close()
    assert slow > 2 * fast + SLACK_SECONDS


def test_c13_a_disk_that_stands_still_fills_a_bounded_queue_and_then_holds_the_producer(
    experiment: Experiment, fuse_disk: MakeDisk
) -> None:
    disk = fuse_disk()
    outbox = Outbox.open(disk.mountpoint / "state" / "outbox.db", settings(queue_entries=500))
    with recording(outbox) as (recorder, stored):
        made = 0
        highest_queue = 0
        done = threading.Event()

        def keep(receipts: Sequence[Receipt]) -> None:
            stored.extend(receipt.seq for receipt in receipts)

        def produce() -> None:
            nonlocal made
            while not done.is_set():
                recorder.submit([event(made)], keep)
                made += 1

        producer = threading.Thread(target=produce, name="producer")
        producer.start()
        until(lambda: stored)
        disk.set(frozen=True)
        try:
            end = time.monotonic() + experiment.seconds(10.0, 0.0)
            held_at = -1
            while time.monotonic() < end:
                highest_queue = max(highest_queue, outbox.stats().queued_entries)
                held_at = made
                time.sleep(0.05)
            still = made
        finally:
            disk.set(frozen=False)
        until(lambda: made > still)  # it goes on by itself
        done.set()
        producer.join(30)
        until(lambda: len(stored) == made, 30)
        assert highest_queue == 500, "the queue is bounded, and it was full"
        assert held_at == still, "the producer waited"
        assert stored == list(range(1, made + 1))
        assert not outbox.failed
