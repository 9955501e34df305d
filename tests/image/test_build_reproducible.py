"""Two builds of one commit give the same root hash; only signatures differ. Needs root and the build's cache."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).parents[2]

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]


def built(out: Path, *words: str) -> dict[str, Any]:
    argv: list[str | Path] = [
        sys.executable,
        "-B",
        REPO / "image/build",
        "uefi-amd64",
        "--bundle-only",
        "--json",
        "--output",
        out,
        *words,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_two_builds_have_the_same_root_and_another_version_has_another(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("building an image needs root")
    one, two = (built(tmp_path / name)["variants"]["shipping"] for name in ("one", "two"))
    assert one["root_hash"] == two["root_hash"]
    assert one["root_sha256"] == two["root_sha256"]
    assert one["pcr11"] == two["pcr11"]
    other = built(tmp_path / "other", "--version", "9.9.9")["variants"]["shipping"]
    assert other["root_hash"] != one["root_hash"]
