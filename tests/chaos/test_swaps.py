"""Many swaps under a live stream: no frame is lost, none is answered twice. The long form does a thousand."""

import pytest

from tests.bench.swap import swap_many
from tests.chaos.experiment import Experiment

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

MOST_MS = 100.0


def test_swaps_lose_no_frame(experiment: Experiment) -> None:
    figures = swap_many(experiment.scaled(25, 1000), experiment.directory)
    experiment.log("swapped", **figures)
    assert figures["lost"] == figures["answered_twice"] == 0
    assert figures["gap_ms"]["max"] < MOST_MS
