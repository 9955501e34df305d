"""Building for another architecture: what is lent to its tree while packages are installed, and taken away again."""

import os
import subprocess
from pathlib import Path

import pytest

from image.builder import emulation
from image.builder.chroot import ISOLATED
from image.builder.errors import MissingError

OWN = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
_FIXED = ("bash", "dash", "perl")


def test_an_image_of_this_machines_architecture_emulates_nothing(tmp_path: Path) -> None:
    assert not emulation.needed(OWN)
    with emulation.registered(OWN, tmp_path):
        pass


@pytest.mark.skipif(OWN == "amd64", reason="x86-64 images are built here")
def test_an_x86_image_is_not_built_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="amd64 machine"), emulation.registered("amd64", tmp_path):
        pass


def trees(folder: Path) -> tuple[Path, Path]:
    """Stand-ins for the tools and for a tree of the other architecture."""
    tools, tree = folder / "tools", folder / "tree"
    for place in ("usr/bin", "usr/sbin", "usr/lib64", "usr/lib/x86_64-linux-gnu"):
        (tools / place).mkdir(parents=True)
    options = " ".join(emulation.native_hooks(tools))
    for word in set(options.replace("$1", " ").replace(";", " ").split()):
        if word.startswith(("usr/bin/", "usr/sbin/")):
            (tools / word).write_text("native")
    (tree / "usr/bin").mkdir(parents=True)
    for name in _FIXED:
        (tools / "usr/bin" / name).write_text("native")
        (tree / "usr/bin" / name).write_text("foreign")
    (tree / "usr/lib").mkdir()
    return tools, tree


def contents(tree: Path) -> dict[str, str]:
    return {str(path.relative_to(tree)): path.read_text() if path.is_file() else "" for path in sorted(tree.rglob("*"))}


def test_a_tree_is_lent_programs_while_packages_are_installed_and_is_as_before_afterwards(tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root, and namespaces")
    tools, tree = trees(tmp_path)
    before = contents(tree)
    scripts = [option.partition("-hook=")[2] for option in emulation.native_hooks(tools)]
    early, later, end = scripts
    look = f'cat "$1/usr/bin/dash" "$1{emulation.NATIVE_PATH}/dpkg-deb"; test -d "$1/lib64/"; echo'
    whole = "\n".join(f"({part})" for part in (early, later, look, end))
    done = subprocess.run([*ISOLATED, "sh", "-euc", whole, "exec", tree], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "nativenative\n"
    assert contents(tree) == before
    assert str(tree) not in Path("/proc/mounts").read_text()
