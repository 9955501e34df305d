"""The library that stands in for an accelerator's: it says what it is, and hangs and comes back as it is told."""

import ctypes
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.inference.edgetpu import list_devices
from hil.loopback.children import RigError
from tests.gateway.inference.graphs import custom

pytest.importorskip("labgrid", reason="the rig needs labgrid, which `make hil` installs")
from hil.rig import accelerator

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (Debian: gcc)")

USE = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter, load_delegate
interpreter = Interpreter(model_path=sys.argv[2], experimental_delegates=[load_delegate(sys.argv[1])])
interpreter.allocate_tensors()
for line in sys.stdin:
    try:
        interpreter.invoke()
        print("answered", flush=True)
    except RuntimeError:
        print("refused", flush=True)
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return accelerator.build(tmp_path)


def test_it_says_that_it_is_no_accelerator(library: Path) -> None:
    version = ctypes.CDLL(str(library)).edgetpu_version
    version.restype = ctypes.c_char_p
    assert b"stand-in" in version()


def test_it_lists_what_its_file_says(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "devices"
    monkeypatch.setenv("STANDIN_DEVICES_FILE", str(told))
    for text, count in (("", 0), ("usb 1", 1), ("usb 1 hang", 1), ("usb,usb 2", 2)):
        told.write_text(text)
        assert len(list_devices(str(library))) == count


def test_an_inference_hangs_until_the_device_is_reset_and_is_refused_then(library: Path, tmp_path: Path) -> None:
    told, model = tmp_path / "devices", tmp_path / "model.tflite"
    model.write_bytes(custom("edgetpu-custom-op"))
    told.write_text("usb 1")
    user = subprocess.Popen(
        [sys.executable, "-c", USE, str(library), str(model)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={"STANDIN_DEVICES_FILE": str(told)},
    )  # fmt: skip
    assert user.stdin is not None
    assert user.stdout is not None

    def ask() -> None:
        assert user.stdin is not None
        user.stdin.write("\n")
        user.stdin.flush()

    try:
        ask()
        assert user.stdout.readline() == "answered\n"
        told.write_text("usb 1 hang")
        ask()
        assert select.select([user.stdout], [], [], 0.5)[0] == []
        told.with_suffix(".new").write_text("usb 2")
        told.with_suffix(".new").rename(told)
        assert user.stdout.readline() == "refused\n"
    finally:
        user.kill()
        user.communicate()


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RigError, match="apt-get install gcc"):
        accelerator.build(tmp_path)
