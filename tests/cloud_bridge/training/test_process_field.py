"""Windows from the field for `process-anomaly`: what was before them did not travel."""

import numpy as np

from cloud_bridge.training import release
from cloud_bridge.training.__main__ import SHIPPED
from cloud_bridge.training.recipes import process
from cloud_bridge.training.recipes.field import FIELD_FALSE, FIELD_RECALL
from cloud_bridge.training.recipes.recipe import Field, Recording


def field() -> Field:
    random = np.random.default_rng(1)
    seen = [Recording(20 + random.normal(0, 0.5, (32, 2)), "gw/tank", channel) for channel in (0, 1, None) * 4]
    shifted = Recording(20 + random.normal(0, 0.5, (32, 2)) + np.where(np.arange(32) < 16, 0, 8)[:, None], "gw/tank", 0)
    return Field(tuple(seen[:6]), tuple(seen[6:9]), tuple(seen[9:]), (shifted,))


def test_the_healthy_windows_of_a_channel_are_its_baseline_and_make_a_shift_an_anomaly() -> None:
    found = release.read(SHIPPED / process.NAME / process.VERSION)
    figures = process.evaluate(found.model, found.manifest, 0.01, field())
    assert figures[FIELD_FALSE] == 0.0
    assert figures[FIELD_RECALL] == 1.0


def test_a_window_of_one_channel_gives_one_row_and_one_of_all_gives_each() -> None:
    found = release.read(SHIPPED / process.NAME / process.VERSION)
    alone = process.baseline(found.model, found.manifest, 0.01, Field())
    with_field = process.baseline(found.model, found.manifest, 0.01, field())
    assert with_field.samples - alone.samples == 1 + 1 + 2
