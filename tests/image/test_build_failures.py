"""What goes wrong while an image is built is told with what to do about it, and leaves nothing behind."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from image.builder import advice, space
from image.builder.chroot import ISOLATED
from image.builder.errors import BuildError, MissingError
from image.builder.progress import Progress

REPO = Path(__file__).parents[2]

as_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mmdebstrap") is None, reason="needs root and mmdebstrap, as a build does"
)


def command(cache: Path, *words: str | Path) -> list[str | Path]:
    return [sys.executable, "-B", REPO / "image/build", "uefi-amd64", "--output", cache / "out", *words]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "SLUICE_IMAGE_CACHE": str(cache)}


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        (
            "E: Unable to locate package nosuch-package",
            "no archive of this machine's apt has the package nosuch-package",
        ),
        ("E: Package 'gone' has no installation candidate", "has the package gone for"),
        ("dpkg: error: failed to write (No space left on device)", "the disk is full"),
        ("Err:1 http://mirror.example trixie InRelease\n  Could not connect to mirror.example:80", "--offline"),
        ("W: GPG error: http://mirror.example trixie InRelease: NO_PUBKEY 6ED0E7B82643E131", "debian-archive-keyring"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "do not use it"),
        ("unshare: unshare failed: Operation not permitted", "CAP_SYS_ADMIN"),
    ],
)
def test_what_tools_say_in_their_words_is_followed_by_what_to_do(output: str, remedy: str) -> None:
    assert remedy in advice.about(output)


def test_what_nobody_foresaw_is_told_without_advice(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "log")
    with (
        pytest.raises(BuildError, match=r"packing: sh ended with status 3\nodd\nAll: .*log$"),
        progress.step("packing"),
    ):
        progress.run(["sh", "-c", "echo odd; exit 3"])


def test_the_message_names_the_program_and_not_what_isolates_it(tmp_path: Path) -> None:
    if subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine forbids namespaces")
    with pytest.raises(BuildError, match="start: false ended with status 1"):
        Progress(tmp_path / "log").run([*ISOLATED, "false"])


def test_a_full_disk_under_the_builder_itself_is_told_with_its_place() -> None:
    told = advice.about_os(OSError(errno.ENOSPC, "No space left on device", "/var/x"))
    assert told.startswith("/var/x: No space left on device; ")
    assert "SLUICE_IMAGE_CACHE" in told
    assert advice.about_os(OSError(errno.EACCES, "Permission denied", "/var/x")) == "/var/x: Permission denied"


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    space.check({one: free // 2, two: 0})
    # Both are on one file system, so what they need adds up.
    with pytest.raises(MissingError, match=r"GB are needed, .* GB are free"):
        space.check({one: free * 2 // 3, two: free * 2 // 3})


def test_an_ordinary_user_is_told_to_be_root(tmp_path: Path) -> None:
    # Nobody is root in a new user namespace that maps no user.
    ordinary = ["unshare", "--user"] if os.geteuid() == 0 else []
    if ordinary and subprocess.run([*ordinary, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine forbids user namespaces")
    argv = [*ordinary, *command(tmp_path)]
    done = subprocess.run(argv, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "sudo make image" in done.stderr


@as_root
def test_offline_with_an_empty_cache_lists_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, "--offline"), env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "tools tree: tools-" in done.stderr
    assert "root tar: root-amd64-" in done.stderr
    assert "build once without --offline" in done.stderr


@as_root
def test_a_mirror_that_does_not_answer_is_told_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        sources = tmp_path / "sources.list"
        sources.write_text(f"deb [trusted=yes] http://127.0.0.1:{closed.getsockname()[1]}/debian trixie main\n")
        done = subprocess.run(
            command(tmp_path, "--apt-sources", sources),
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "tools tree: mmdebstrap ended with status" in done.stderr
    assert "an archive or index cannot be reached" in done.stderr


@pytest.fixture
def silent_mirror() -> Iterator[str]:
    """An archive that takes connections and says nothing, so that a build stays where it is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/debian"


def processes_about(text: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text in (folder / "cmdline").read_text(errors="replace"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def eventually(holds: object, seconds: float = 60.0) -> bool:
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.1)
    return False


@as_root
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_no_process_no_mount_and_no_half_tree(
    ending: signal.Signals, silent_mirror: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    sources = tmp_path / "sources.list"
    sources.write_text(f"deb [trusted=yes] {silent_mirror} trixie main\n")
    log = cache / "out/build.log"
    with subprocess.Popen(
        command(cache, "--apt-sources", sources),
        env=environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert eventually(lambda: log.is_file() and "running apt-get update" in log.read_text())
        # It is in the middle of it: there is something to leave behind.
        assert len(processes_about(str(cache))) > 1
        assert list(cache.glob("apt-*"))
        process.send_signal(ending)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in told
    assert eventually(lambda: not processes_about(str(cache)))
    assert str(cache) not in Path("/proc/mounts").read_text()
    assert {path.name for path in cache.iterdir()} <= {"out", "debs"}
