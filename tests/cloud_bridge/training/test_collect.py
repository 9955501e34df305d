"""What is learned from, and what is not."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cloud_bridge.store.base import Store
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.training import release
from cloud_bridge.training.__main__ import SHIPPED
from cloud_bridge.training.collect import collect, field_of
from gateway.wire.manifest import ModelManifest
from tests.cloud_bridge.training.field import FieldGateway, npy


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return SqliteStore(tmp_path / "bridge.db")


@pytest.fixture
def manifest() -> ModelManifest:
    return release.read(SHIPPED / "vibration-anomaly" / "1.0.0").manifest


def window(value: float = 0.5) -> bytes:
    return npy(np.full((3200, 3), value))


def test_what_nobody_judged_is_healthy_only_if_the_model_was_unsure_and_below_its_threshold(
    store: Store, manifest: ModelManifest
) -> None:
    gateway = FieldGateway(store)
    gateway.send(window(), 0.45, low_confidence=True)
    gateway.send(window(), 0.8)
    gateway.send(window(), 0.55, low_confidence=True)
    found = collect(store, manifest, {})
    assert [(one.verdict, one.by) for one in found.samples] == [
        ("normal", "rule"),
        ("unknown", "nobody"),
        ("unknown", "nobody"),
    ]
    field = field_of(found.samples)
    assert len(field.train) + len(field.validation) + len(field.held) == 1
    assert field.anomalous == ()


def test_what_a_person_says_counts_more(store: Store, manifest: ModelManifest) -> None:
    gateway = FieldGateway(store)
    false_alarm, fault = gateway.send(window(), 0.9), gateway.send(window(), 0.45, low_confidence=True)
    found = collect(store, manifest, {("gw", false_alarm): "normal", ("gw", fault): "bearing"})
    assert [(one.verdict, one.by) for one in found.samples] == [("normal", "person"), ("anomalous", "person")]
    assert len(field_of(found.samples).anomalous) == 1


def test_what_is_no_window_of_the_model_is_left_out_and_counted(store: Store, manifest: ModelManifest) -> None:
    gateway = FieldGateway(store)
    for blob in (b"", b"\x93NUMPY", b"not a file", npy(np.zeros((32, 3))), npy(np.full((3200, 3), np.nan))):
        gateway.send(blob, 0.45, low_confidence=True)
    pickled = np.array([{"a": 1}], dtype=object).dumps()
    gateway.send(pickled, 0.45, low_confidence=True)
    FieldGateway(store, "other", model="process-anomaly").send(window(), 0.45, low_confidence=True)
    found = collect(store, manifest, {})
    assert found.samples == ()
    assert found.left_out == {"no window that fits the model": 6}


@pytest.mark.parametrize("shape", [(10**14, 3), (10**10, 3), (2**62, 4), (-1, 3), (3200, 4)])
def test_a_window_that_announces_more_than_it_has_costs_nothing_but_itself(
    store: Store, manifest: ModelManifest, shape: tuple[int, int]
) -> None:
    blob = io.BytesIO()
    np.lib.format.write_array_header_1_0(blob, {"descr": "<f8", "fortran_order": False, "shape": shape})
    gateway = FieldGateway(store)
    gateway.send(blob.getvalue() + bytes(64), 0.45, low_confidence=True)
    gateway.send(window(), 0.45, low_confidence=True)
    found = collect(store, manifest, {})
    assert found.left_out == {"no window that fits the model": 1}
    assert len(found.samples) == 1, "the control"


def test_the_windows_of_one_event_stand_in_one_part_whatever_else_comes(store: Store, manifest: ModelManifest) -> None:
    gateway = FieldGateway(store)
    for at in range(60):
        gateway.send(window(at / 60), 0.45, low_confidence=True)
    before = field_of(collect(store, manifest, {}).samples)
    sizes = Counter(train=len(before.train), validation=len(before.validation), held=len(before.held))
    assert sum(sizes.values()) == 60
    assert sizes["train"] > sizes["validation"] > 3
    gateway.send(window(0.99), 0.45, low_confidence=True)
    after = field_of(collect(store, manifest, {}).samples)
    seen = {one.samples[0, 0] for one in after.held}
    assert {one.samples[0, 0] for one in before.held} <= seen


def test_a_limit_keeps_the_first_and_counts_the_rest(store: Store, manifest: ModelManifest) -> None:
    gateway = FieldGateway(store)
    for _ in range(3):
        gateway.send(window(), 0.45, low_confidence=True)
    found = collect(store, manifest, {}, limit=2)
    assert len(found.samples) == 2
    assert found.left_out == {"more than can be used": 1}
