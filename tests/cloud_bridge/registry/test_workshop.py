"""The device's program as a child process: what it finds, and what it may not do."""

import hashlib
import shutil
import sys
import time
from pathlib import Path

import pytest

from cloud_bridge.registry.errors import RegistryError
from cloud_bridge.registry.workshop import ChildWorkshop
from gateway.wire.manifest import read_manifest

SHIPPED = Path(__file__).parents[3] / "gateway" / "models" / "process-anomaly" / "1.0.0"
MODEL = "process-anomaly-int8.tflite"
GIB = 1 << 30


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A release that ships, to be spoilt."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "release"))


def workshop(seconds: float = 100, memory: int = 4 * GIB) -> ChildWorkshop:
    return ChildWorkshop(seconds, memory)


def test_a_good_release_runs_its_golden_inputs(copy: Path) -> None:
    [artefact], problems = workshop().examine(copy)
    assert problems == []
    assert (artefact.target, artefact.golden, artefact.skipped) == ("cpu-int8", 2, "")


def test_a_changed_byte_is_found_by_its_digest(copy: Path) -> None:
    content = bytearray((copy / MODEL).read_bytes())
    content[-1] ^= 1
    (copy / MODEL).write_bytes(content)
    _, [problem] = workshop().examine(copy)
    assert (problem.code, problem.where) == ("digest", MODEL)


def resign(copy: Path, content: bytes) -> None:
    """Make a file the one of the manifest."""

    old = read_manifest((copy / "manifest.json").read_bytes()).artefacts[0]
    text = (copy / "manifest.json").read_text()
    text = text.replace(old.sha256, hashlib.sha256(content).hexdigest())
    text = text.replace(f'"size_bytes": {old.size_bytes}', f'"size_bytes": {len(content)}')
    (copy / "manifest.json").write_text(text)
    (copy / MODEL).write_bytes(content)


def test_what_is_no_model_is_refused(copy: Path) -> None:
    resign(copy, b"TFL3" * 1000)
    _, [problem] = workshop().examine(copy)
    assert problem.code in {"does-not-run", "crashed"}
    assert MODEL in problem.where or problem.code == "crashed"


def test_a_wrong_golden_answer_is_refused(copy: Path) -> None:

    golden = read_manifest((copy / "manifest.json").read_bytes()).golden[0]
    answer = bytes(byte ^ 0x40 for byte in (copy / golden.output).read_bytes())
    (copy / golden.output).write_bytes(answer)
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace(golden.output_sha256, hashlib.sha256(answer).hexdigest()))
    _, [problem] = workshop().examine(copy)
    assert problem.code == "does-not-run"
    assert "golden input" in problem.message


@pytest.mark.parametrize(("tolerance", "codes"), [("15", []), ("16", ["tolerance"]), ("1e30", ["tolerance"])])
def test_a_tolerance_that_lets_wrong_answers_pass_is_a_problem(copy: Path, tolerance: str, codes: list[str]) -> None:
    """Without it, a wrong golden answer is found right by 1e30."""
    golden = read_manifest((copy / "manifest.json").read_bytes()).golden[0]
    answer = bytes(byte ^ 0x04 for byte in (copy / golden.output).read_bytes())
    (copy / golden.output).write_bytes(answer)
    text = (copy / "manifest.json").read_text()
    text = text.replace(golden.output_sha256, hashlib.sha256(answer).hexdigest())
    text = text.replace(f'"tolerance": {golden.tolerance:.1f}', f'"tolerance": {tolerance}', 1)
    (copy / "manifest.json").write_text(text)
    assert read_manifest(text.encode()).golden[0].tolerance == float(tolerance)
    [artefact], problems = workshop().examine(copy)
    assert artefact.golden == 2, "all answers are within the tolerance"
    assert [problem.code for problem in problems] == codes
    assert all(problem.acceptable and golden.output in problem.where for problem in problems)


def test_too_little_memory_is_a_reason_and_no_crash_of_the_bridge(copy: Path) -> None:
    _, [problem] = workshop(memory=64 << 20).examine(copy)
    assert problem.code in {"crashed", "does-not-run"}


@pytest.mark.parametrize(
    ("program", "code", "word"),
    [
        ("import time; time.sleep(600)", "too-slow", "more than 1 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed", "signal 11"),
        ("print('{}x'); raise SystemExit(3)", "crashed", "exit status 3"),
        ("import sys\nwhile True: sys.stdout.write('x' * 65536)", "too-slow", "more than 1 s"),
        ("import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])",
         "too-slow", "more than 1 s"),
    ],
)  # fmt: skip
def test_whatever_a_model_does_to_its_process_is_a_problem_of_the_release(
    copy: Path, tmp_path: Path, program: str, code: str, word: str
) -> None:
    script = tmp_path / "program.py"
    script.write_text(program)
    started = time.monotonic()
    _, [problem] = ChildWorkshop(1, GIB, command=(sys.executable, str(script))).examine(copy)
    assert (problem.code, word in problem.message) == (code, True)
    assert time.monotonic() - started < 30
    assert not problem.acceptable


def test_files_are_sealed_and_opened_again(tmp_path: Path) -> None:
    plain, sealed, back = tmp_path / "plain", tmp_path / "sealed", tmp_path / "back"
    plain.mkdir()
    (plain / "a.zst").write_bytes(b"weights" * 1000)
    (plain / "b.patch").write_bytes(b"")
    key = bytes(range(32))
    workshop().seal(plain, SHIPPED / "manifest.json", key, sealed)
    assert b"weights" not in (sealed / "a.zst.sealed").read_bytes()
    assert list(tmp_path.glob("*.key")) == [], "the key is not left lying"
    workshop().unseal(sorted(sealed.iterdir()), key, back)
    assert {file.name: file.read_bytes() for file in back.iterdir()} == {"a.zst": b"weights" * 1000, "b.patch": b""}
    with pytest.raises(RegistryError, match="content key"):
        workshop().unseal(sorted(sealed.iterdir()), bytes(32), tmp_path / "not")
