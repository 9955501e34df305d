"""Decrypted weights live in sealed memory and nowhere else."""

import hashlib
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.vault.aead import GCM, STREAM, Algorithm
from gateway.vault.container import Contents, sealed
from gateway.vault.errors import DamagedContainerError, VaultError, WrongKeyError
from gateway.vault.weights import Room, header_of, open_own, open_sealed
from tests.simulators.waiting import wait_for

KEY = bytes(range(32))
VICTIM = Path(__file__).with_name("canary_victim.py")


def open_files() -> set[str]:
    return {file.name for file in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """A folder that another user may reach: pytest closes its own whenever a run begins on this machine."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


def write(path: Path, plain: bytes, algorithm: Algorithm = GCM) -> Path:
    contents = Contents("probe", "1.0.0", "0" * 64, "model.tflite", hashlib.sha256(plain).hexdigest(), len(plain))
    path.write_bytes(sealed(contents, KEY, plain, algorithm))
    return path


@pytest.mark.parametrize("algorithm", [GCM, STREAM])
@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 3_000_000])
def test_weights_are_read_by_path_and_by_view(tmp_path: Path, size: int, algorithm: Algorithm) -> None:
    plain = os.urandom(size)
    with open_sealed(write(tmp_path / "m.sealed", plain, algorithm), KEY) as weights:
        assert Path(weights.path).read_bytes() == plain
        assert bytes(weights.view) == plain
        assert weights.header.size_bytes == size


@pytest.mark.parametrize("size", [0, 1, 65_537, 20_000_000])
def test_weights_are_the_same_in_memory_that_was_taken_beforehand(tmp_path: Path, size: int) -> None:
    plain = os.urandom(size)
    path = write(tmp_path / "m.sealed", plain)
    for opened in (open_sealed, open_own):
        with Room(path) as room, opened(path, KEY, sha256=hashlib.sha256(plain).hexdigest(), room=room) as weights:
            assert Path(weights.path).read_bytes() == plain
            with pytest.raises(OSError):
                os.write(weights.fd, b"x")


def test_memory_that_nobody_has_taken_is_given_back(tmp_path: Path) -> None:
    path = write(tmp_path / "m.sealed", bytes(3_000_000))
    before = open_files()
    with pytest.raises(WrongKeyError), Room(path):
        raise WrongKeyError("the key was refused meanwhile")
    with pytest.raises(WrongKeyError), Room(path) as room:
        open_sealed(path, bytes(32), room=room)
    damaged = bytearray(path.read_bytes())
    damaged[-10] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DamagedContainerError), Room(path) as room:
        open_sealed(path, KEY, room=room)
    assert open_files() == before


def test_a_container_that_is_replaced_while_its_key_is_asked_for_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.sealed", bytes(1000))
    with Room(path) as room:
        wait_for(lambda: room.is_made, what="the memory was taken")
        write(path, bytes(2000))
        with pytest.raises(DamagedContainerError, match="was replaced"):
            open_sealed(path, KEY, room=room)


def test_no_memory_is_taken_for_what_a_header_merely_claims(tmp_path: Path) -> None:
    path = write(tmp_path / "m.sealed", b"x" * 1000)
    path.write_bytes(path.read_bytes().replace(b'"size_bytes":1000', b'"size_bytes":9999'))
    with Room(path) as room, pytest.raises(DamagedContainerError, match="should have"):
        room.take()


def test_nobody_can_write_to_open_weights(tmp_path: Path) -> None:
    with open_sealed(write(tmp_path / "m.sealed", b"weights" * 1000), KEY) as weights:
        with pytest.raises(OSError):
            os.write(weights.fd, b"x")
        # Whoever may open the file anew for writing still cannot change it: the memory itself is sealed.
        with Path(weights.path).open("r+b", buffering=0) as again:
            with pytest.raises(PermissionError):
                again.write(b"x")
            with pytest.raises(PermissionError):
                again.truncate(1)
            with pytest.raises(PermissionError):
                mmap.mmap(again.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_WRITE)


def test_a_child_process_reads_weights_by_the_inherited_descriptor(tmp_path: Path) -> None:
    with open_sealed(write(tmp_path / "m.sealed", b"weights"), KEY) as weights:
        code = f"print(open('/proc/self/fd/{weights.fd}').read())"
        run = subprocess.run([sys.executable, "-c", code], pass_fds=[weights.fd], capture_output=True, check=True)
        assert run.stdout == b"weights\n"
        alone = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert alone.returncode != 0


def test_closing_gives_the_memory_back(tmp_path: Path) -> None:
    weights = open_sealed(write(tmp_path / "m.sealed", bytes(100_000)), KEY)
    before = open_files()
    weights.close()
    weights.close()
    assert open_files() < before
    with pytest.raises(VaultError, match="closed"):
        _ = weights.path


def test_a_refused_container_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    path = write(tmp_path / "m.sealed", bytes(3_000_000))
    damaged = bytearray(path.read_bytes())
    damaged[-10] ^= 1
    path.write_bytes(damaged)
    before = len(open_files())
    for _ in range(5):
        with pytest.raises(DamagedContainerError, match=r"m\.sealed: chunk 45 is not authentic; put the release"):
            open_sealed(path, KEY)
    assert len(open_files()) == before


def test_authentic_weights_that_are_not_those_of_the_manifest_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.sealed", b"weights of somebody who has the key")
    with pytest.raises(DamagedContainerError, match="the manifest says 000000000000"):
        open_sealed(path, KEY, sha256="0" * 64)


def test_a_header_cannot_make_the_process_ask_for_more_memory_than_the_file_has(tmp_path: Path) -> None:
    path = write(tmp_path / "m.sealed", b"x" * 1000)
    path.write_bytes(path.read_bytes().replace(b'"size_bytes":1000', b'"size_bytes":9999999999'))
    with pytest.raises(DamagedContainerError):
        open_sealed(path, KEY)


def test_a_wrong_key_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(WrongKeyError):
        open_sealed(write(tmp_path / "m.sealed", b"x"), bytes(32))
    with pytest.raises(DamagedContainerError, match=r"gone\.sealed cannot be read: No such file"):
        open_sealed(tmp_path / "gone.sealed", KEY)
    with pytest.raises(DamagedContainerError, match="no file of sealed weights"):
        header_of(Path(__file__))


def flags_of(name: str) -> list[set[str]]:
    """Return what the kernel says of each mapping of a file of this process (proc(5), VmFlags)."""
    found, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line[0].isupper():
            inside = name in line
        elif inside and line.startswith("VmFlags:"):
            found.append(set(line.split()[1:]))
    return found


def test_every_page_of_open_weights_is_locked_and_in_no_core_dump(tmp_path: Path) -> None:
    size = 3_000_000
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if os.getuid() != 0 and limit not in (resource.RLIM_INFINITY,) and limit < 2 * size:
        pytest.skip(f"this user may lock {limit} bytes")
    with open_sealed(write(tmp_path / "m.sealed", os.urandom(size)), KEY) as weights:
        assert weights.locked
        mappings = flags_of("sluice-model.tflite")
        assert mappings
        assert all({"lo", "dd"} <= flags for flags in mappings)
        # The control: what anybody maps of it without care.
        with mmap.mmap(weights.fd, size, mmap.MAP_SHARED, mmap.PROT_READ):
            assert not all({"lo", "dd"} <= flags for flags in flags_of("sluice-model.tflite"))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give rights up")
def test_weights_open_without_the_right_to_lock_memory(shared_path: Path) -> None:
    path = write(shared_path / "m.sealed", bytes(1 << 20))
    code = (
        "import os, resource, sys; from pathlib import Path; from gateway.vault.weights import open_sealed\n"
        "from gateway.vault.hardening import harden_process\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0)); os.setgid(65534); os.setuid(65534)\n"
        "harden_process()\n"
        f"w = open_sealed(Path({str(path)!r}), bytes(range(32)))\n"
        "print(w.locked, len(Path(w.path).read_bytes()))"
    )
    path.chmod(0o644)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines()[-1:] == ["False 1048576"], run.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("protected", [True, False], ids=["protected", "control: protection off"])
def test_no_plaintext_reaches_disk_logs_core_or_other_processes(shared_path: Path, protected: bool) -> None:
    """The victim opens weights full of a canary, by the vault or, as a control, by a temporary file and with dumps on.

    Then the whole directory, what the victim has printed, its core dump, and what another process of the same user
    reads of its memory by /proc are searched.
    """
    canary = os.urandom(24)
    path = write(shared_path / "m.sealed", canary * 50_000)
    work = shared_path / "work"
    work.mkdir()
    work.chmod(0o777)
    log = work / "log"
    with log.open("wb") as out:
        mode = "protected" if protected else "careless"
        victim = subprocess.Popen(
            [sys.executable, str(VICTIM), mode, str(path), str(work)], stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
    try:
        wait_for(lambda: (work / "ready").exists() or victim.poll() is not None, seconds=20, what="the victim is ready")
        assert victim.poll() is None, log.read_text()
        reader = [sys.executable, str(VICTIM.with_name("memory_reader.py")), str(victim.pid), canary.hex()]
        peek = subprocess.run(reader, capture_output=True, text=True, check=False, timeout=60)
        victim.send_signal(signal.SIGABRT)
        victim.wait(30)
    finally:
        victim.kill()
        victim.wait()
    found = {file.name for file in work.rglob("*") if file.is_file() and canary in file.read_bytes()}
    assert canary not in path.read_bytes()
    assert peek.returncode == 0, peek.stderr
    if protected:
        assert found == set()
        assert peek.stdout.strip() == "refused"
    else:
        assert "plain.tflite" in found
        assert peek.stdout.strip() == "found"
        if _core_pattern_is_a_file():
            assert any(name.startswith("core") for name in found)


def _core_pattern_is_a_file() -> bool:
    return Path("/proc/sys/kernel/core_pattern").read_text().strip().startswith("core")


def test_the_limit_for_core_dumps_of_this_process_is_untouched_by_importing() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import resource, gateway.vault.hardening; print(resource.getrlimit(4))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == str(resource.getrlimit(resource.RLIMIT_CORE))
