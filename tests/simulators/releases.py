"""Writes releases whose artefact is any bytes: good for everything that never runs the model."""

import hashlib
import json
from pathlib import Path
from typing import Any


def write_release(directory: Path, name: str, version: str, content: bytes = b"weights", **parts: Any) -> Path:
    """Write `<directory>/<name>/<version>` with one artefact; `parts` replace those of the manifest."""
    folder = directory / name / version
    folder.mkdir(parents=True)
    (folder / "model.tflite").write_bytes(content)
    manifest = {
        "name": name,
        "version": version,
        "summary": "for tests",
        "artefacts": [
            {
                "target": "cpu-int8",
                "file": "model.tflite",
                "sha256": hashlib.sha256(content).hexdigest(),
                "size_bytes": len(content),
            }
        ],
        "input": {"kind": "image", "height": 8, "width": 8},
        "output": {"kind": "classification", "labels": ["a", "b"]},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | parts))
    return folder
