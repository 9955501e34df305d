"""What is read of a bundle without RAUC."""

from pathlib import Path

import pytest

from cloud_bridge.osbundles.bundle import read_bundle, verify
from cloud_bridge.registry.errors import RegistryError
from tests.simulators.os_bundle import Signer, bundle

SIGNER = Signer.make()


def test_a_bundle_says_what_it_is_and_what_it_may_follow(tmp_path: Path) -> None:
    meta = {"counter": "7", "pcr11-a": "AB" * 32, "pcr11-b": "none"}
    found = read_bundle(bundle(tmp_path / "b", SIGNER, version="1.4.0", floor="1.2.0", adaptive=True, meta=meta))
    assert (found.compatible, found.version, found.floor, found.counter) == ("sluice-uefi-amd64", "1.4.0", "1.2.0", 7)
    assert found.adaptive
    assert found.pcr11 == {"a": "ab" * 32}
    assert found.size_bytes == found.file.stat().st_size


def test_the_signature_part_names_everything_before_it(tmp_path: Path) -> None:
    one = read_bundle(bundle(tmp_path / "a", SIGNER, version="1.4.0", payload=b"one" * 1000))
    other = read_bundle(bundle(tmp_path / "b", SIGNER, version="1.4.0", payload=b"two" * 1000))
    assert one.tail_sha256 != other.tail_sha256
    assert one.manifest_sha256 != other.manifest_sha256


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 7,
        b"\0" * 4096,
        b"x" * 4096,
        b"y" * 100 + (90).to_bytes(8, "big"),
        b"0" + bytes([0x30, 0x84]) + (2).to_bytes(8, "big"),
    ],
)
def test_a_file_that_is_no_bundle_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "none.raucb"
    file.write_bytes(content)
    with pytest.raises(RegistryError, match=r"none\.raucb"):
        read_bundle(file)


@pytest.mark.parametrize(
    ("parts", "words"),
    [({"version": "new"}, "version"), ({"compatible": "Big One"}, "compatible"), ({"floor": "x"}, "floor")],
)
def test_a_manifest_with_strange_names_is_refused(tmp_path: Path, parts: dict[str, str], words: str) -> None:
    with pytest.raises(RegistryError, match=words):
        read_bundle(bundle(tmp_path / "b", SIGNER, **{"version": "1.0.0", **parts}))  # type: ignore[arg-type]


def test_a_bundle_of_somebody_else_is_not_verified_by_the_keyring(tmp_path: Path) -> None:
    keyring = SIGNER.keyring(tmp_path / "keyring.pem")
    verify(read_bundle(bundle(tmp_path / "ours", SIGNER, version="1.0.0")), keyring)
    with pytest.raises(RegistryError, match="is not signed by"):
        verify(read_bundle(bundle(tmp_path / "theirs", Signer.make("x"), version="1.0.0")), keyring)
