"""A model that a person has put in place is noticed."""

from pathlib import Path

from gateway.modelwatch import fingerprint
from tests.simulators.releases import write_release


def test_a_new_release_a_mended_file_and_a_removed_one_are_noticed(tmp_path: Path) -> None:
    seen = [fingerprint([tmp_path])]
    write_release(tmp_path, "cat-finder", "1.0.0")
    seen.append(fingerprint([tmp_path]))
    model = tmp_path / "cat-finder" / "1.0.0" / "model.tflite"
    model.write_bytes(model.read_bytes() + b"x")
    seen.append(fingerprint([tmp_path]))
    model.unlink()
    seen.append(fingerprint([tmp_path]))
    assert len(set(seen)) == 4


def test_what_stays_as_it_is_looks_the_same(tmp_path: Path) -> None:
    write_release(tmp_path, "cat-finder", "1.0.0")
    assert fingerprint([tmp_path]) == fingerprint([tmp_path])
    assert fingerprint([tmp_path / "none"]) == frozenset()
