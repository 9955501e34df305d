"""Two builds of one commit give the same root hash; only signatures differ. Needs root and the build's cache."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).parents[2]
CACHE = Path(os.environ.get("SLUICE_IMAGE_CACHE") or REPO / "var/image/cache")
KEYS = REPO / "var/image/keys"

pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="building an image needs root"),
]


def built(
    out: Path, *words: str | Path, repo: Path = REPO, prefix: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Build the bundle and return the manifest, with times."""
    argv = [*prefix, sys.executable, "-B", repo / "image/build", "uefi-amd64", "--json", "--output", out, *words]
    environment = {**os.environ, **(env or {}), "SLUICE_IMAGE_CACHE": str(CACHE)}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def elsewhere(folder: Path) -> Path:
    """The same checkout at another path, as somebody with a strict umask has it."""
    left_out = shutil.ignore_patterns(".venv", "var", "__pycache__", ".mypy_cache", ".ruff_cache", ".hypothesis")
    copy = shutil.copytree(REPO, folder / "another/place/of-the-checkout", symlinks=True, ignore=left_out)
    for path in copy.rglob("*"):
        if not path.is_symlink() and ".git" not in path.parts:
            path.chmod(path.stat().st_mode & ~0o077)
    return Path(copy)


def test_another_checkout_another_umask_and_another_home_give_the_same_root_and_another_version_another(
    tmp_path: Path,
) -> None:
    one = built(tmp_path / "one", "--bundle-only", "--keys", KEYS)["variants"]["shipping"]
    strange = {"HOME": str(tmp_path / "home"), "TZ": "Asia/Tokyo", "LC_ALL": "C", "LOGNAME": "someone", "COLUMNS": "40"}
    strict = ("sh", "-c", 'umask 077; exec "$@"', "sh")
    repo = elsewhere(tmp_path)
    two = built(tmp_path / "two", "--bundle-only", "--keys", KEYS, repo=repo, prefix=strict, env=strange)
    assert two["variants"]["shipping"] == one
    # The control: what is compared follows from what is built.
    other = built(tmp_path / "other", "--bundle-only", "--keys", KEYS, "--version", "9.9.9")["variants"]["shipping"]
    assert other["root_hash"] != one["root_hash"]
    assert other["pcr11"] != one["pcr11"]


def test_a_filled_cache_is_all_that_a_build_needs(tmp_path: Path) -> None:
    alone = ("unshare", "--net")
    reached = subprocess.run(
        [*alone, sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 80), 1)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Network is unreachable" in reached.stderr  # so nothing else can be either
    document = built(tmp_path / "out", "--offline", "--contents-only", "--keys", KEYS, prefix=alone)
    assert (tmp_path / "out/work/root/opt/sluice/bin/gateway").is_file()
    assert document["contents"]


def test_an_incomplete_cache_is_told_by_what_it_lacks(tmp_path: Path) -> None:
    """Everything but one wheel."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for entry in CACHE.iterdir():
        if entry.name != "wheels":
            (cache / entry.name).symlink_to(entry)
    shutil.copytree(CACHE / "wheels", cache / "wheels", copy_function=os.link)
    gone = next((cache / "wheels/amd64").glob("numpy-*.whl"))
    gone.unlink()
    argv: list[str | Path] = [sys.executable, "-B", REPO / "image/build", "uefi-amd64", "--offline", "--keys", KEYS]
    done = subprocess.run(
        [*argv, "--output", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SLUICE_IMAGE_CACHE": str(cache)},
    )
    assert done.returncode == 2
    assert f"numpy {gone.name.split('-')[1]}" in done.stderr
    assert "build once without --offline" in done.stderr
