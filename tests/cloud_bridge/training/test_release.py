from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloud_bridge.training import release
from cloud_bridge.training.__main__ import SHIPPED
from cloud_bridge.training.errors import TrainingError
from gateway.wire.manifest import Quality

PLACE = SHIPPED / "process-anomaly" / "1.0.0"


def figure(metric: str, float_value: float, shipped_value: float) -> Quality:
    return Quality(metric=metric, float_value=float_value, shipped_value=shipped_value, split="test")


def test_a_release_written_is_read_back(tmp_path: Path) -> None:
    shipped = release.read(PLACE)
    place = release.write(shipped, tmp_path)
    assert place == tmp_path / "process-anomaly" / "1.0.0"
    again = release.read(place)
    assert again.manifest == shipped.manifest
    assert again.model == shipped.model


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    place = release.write(release.read(PLACE), tmp_path)
    model = place / "process-anomaly-int8.tflite"
    content = bytearray(model.read_bytes())
    content[-100] ^= 1
    model.write_bytes(content)
    with pytest.raises(TrainingError, match=r"process-anomaly-int8\.tflite: not the file of the manifest"):
        release.read(place)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    place = release.write(release.read(PLACE), tmp_path)
    (place / "golden-healthy-input.bin").unlink()
    with pytest.raises(TrainingError, match=r"golden-healthy-input\.bin"):
        release.read(place)


def test_a_manifest_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(TrainingError, match="manifest"):
        release.read(tmp_path)


def test_a_wrong_golden_answer_is_noticed() -> None:
    shipped = release.read(PLACE)
    name = shipped.manifest.golden[0].output
    wrong = np.frombuffer(shipped.files[name], np.int8).copy()
    wrong[0] ^= 64
    with pytest.raises(TrainingError, match="off by 64"):
        release.check_golden(release.Release(shipped.manifest, {**shipped.files, name: wrong.tobytes()}))
    short = {**shipped.files, name: shipped.files[name][:-1]}
    with pytest.raises(TrainingError, match="31 bytes"):
        release.check_golden(release.Release(shipped.manifest, short))


def test_int8_must_keep_98_percent() -> None:
    release.require_quality([figure("AUC", 0.9, 0.89), figure("false alarms", 0.1, 0.0)])
    with pytest.raises(TrainingError, match=r"AUC: int8 has 0\.8800"):
        release.require_quality([figure("AUC", 0.9, 0.88)])


def test_a_release_without_an_int8_file_says_so() -> None:
    shipped = release.read(PLACE)
    other = msgspec.structs.replace(shipped.manifest.artefacts[0], target="cpu-float")
    manifest = msgspec.structs.replace(shipped.manifest, artefacts=(other,))
    with pytest.raises(TrainingError, match="no artefact for cpu-int8"):
        _ = release.Release(manifest, {}).artefact
