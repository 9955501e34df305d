"""What a manifest may not say."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.wire.errors import MalformedManifestError
from gateway.wire.manifest import ModelManifest, WindowInput, read_manifest

SAMPLE = Path(__file__).parents[3] / "gateway" / "wire" / "samples" / "manifest.json"


def changed(**parts: Any) -> bytes:
    return json.dumps(json.loads(SAMPLE.read_bytes()) | parts).encode()


def artefact(**parts: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SAMPLE.read_bytes())["artefacts"][0]
    return found | parts


def test_the_sample_is_read() -> None:
    manifest = read_manifest(SAMPLE.read_bytes())
    assert isinstance(manifest, ModelManifest)
    assert isinstance(manifest.input, WindowInput)
    found = manifest.artefact("cpu-int8")
    assert found is not None
    assert found.file == "model.tflite"
    assert manifest.artefact("edgetpu") is None


@pytest.mark.parametrize(
    "file", ["../model.tflite", "/etc/passwd", "a/b", ".hidden", "", "a\0b", "model.tflite\n", "x" * 200, "a\\b"]
)
def test_a_file_name_that_leaves_the_release_is_refused(file: str) -> None:
    with pytest.raises(MalformedManifestError):
        read_manifest(changed(artefacts=[artefact(file=file)]))


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"artefacts": []}, "no artefacts"),
        ({"artefacts": [artefact(), artefact(file="other.tflite")]}, "two artefacts for one target"),
        ({"artefacts": [artefact(sha256="ab" * 31)]}, "sha256"),
        ({"artefacts": [artefact(size_bytes=0)]}, "size_bytes"),
        ({"artefacts": [artefact(target="abacus")]}, "target"),
        ({"version": "1.0"}, "version"),
        ({"version": "1.0.0\n"}, "version"),
        ({"name": "Person"}, "name"),
        ({"output": {"kind": "detection", "labels": ["a"], "layout": "raw-ssd"}}, "raw-ssd needs anchors"),
        ({"output": {"kind": "oracle"}}, "kind"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_explained(parts: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MalformedManifestError, match=complaint):
        read_manifest(changed(**parts))


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", b"[" * 200_000, b'{"name":' * 50_000])
def test_hostile_bytes_are_malformed_and_nothing_else(data: bytes) -> None:
    with pytest.raises(MalformedManifestError):
        read_manifest(data)
