"""What the doctor says of clock, disk, memory, temperature and versions."""

import errno
import os
from pathlib import Path

import pytest

from gateway.config import Config, Gateway, Outbox, Vault
from gateway.doctor import machine
from gateway.doctor.diagnosis import Diagnosis, worst
from gateway.doctor.machine import (
    check_clock,
    check_disk,
    check_load,
    check_memory,
    check_outbox,
    check_temperature,
    check_versions,
)
from gateway.health.probes import Clock, Load, Memory, Temperature

SOFTWARE = Vault(level="software")

NOW = 1_900_000_000 * 10**9
MIB = 1024 * 1024


def config(directory: Path, **outbox: object) -> Config:
    settings = Outbox(**outbox)  # type: ignore[arg-type]  # whatever a test wants
    return Config(
        gateway=Gateway(id="a", state_directory=directory), sources={}, pipelines={}, vault=SOFTWARE, outbox=settings
    )


@pytest.mark.parametrize(
    ("clock", "verdict"),
    [
        (Clock(NOW, "synchronised"), "ok"),
        (Clock(NOW, "unknown"), "ok"),
        (Clock(NOW, "free-running"), "warning"),
        (Clock(0, "synchronised"), "failed"),
    ],
)
def test_a_wrong_clock_fails_and_a_free_running_one_is_warned_of(clock: Clock, verdict: str) -> None:
    assert check_clock(clock).verdict == verdict


def test_a_writable_disk_is_measured(tmp_path: Path) -> None:
    space, writing = check_disk(config(tmp_path))
    assert space.verdict in ("ok", "warning")
    assert writing.verdict in ("ok", "warning")
    assert "a sync takes" in writing.found
    assert list(tmp_path.iterdir()) == []


def test_quotas_beyond_the_disk_are_warned_of(tmp_path: Path) -> None:
    space, _ = check_disk(config(tmp_path, ballast_bytes=2**60))
    assert space.verdict == "warning"
    assert "quotas" in space.found


def test_a_state_directory_that_cannot_be_made_fails() -> None:
    *_, writing = check_disk(config(Path("/proc/sluice")))
    assert writing.verdict in ("failed", "skipped")  # root may think it could
    *_, writing = check_disk(config(Path("/proc/1")))
    assert writing.verdict == "failed"
    assert "install -d" in writing.remedy


@pytest.mark.parametrize(
    ("content", "verdict"), [(None, "skipped"), (b"", "ok"), (b"SQLite format 3\0...", "ok"), (b"garbage", "failed")]
)
def test_an_outbox_that_is_no_database_fails(tmp_path: Path, content: bytes | None, verdict: str) -> None:
    if content is not None:
        (tmp_path / "outbox.db").write_bytes(content)
    assert check_outbox(config(tmp_path)).verdict == verdict


def test_what_never_was_an_outbox_is_told_with_what_to_do_and_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "outbox.db")  # whoever opens it waits for a writer
    found = check_outbox(config(tmp_path))
    assert (found.verdict, "named pipe" in found.found) == ("failed", True)
    assert "alone" in found.remedy


def test_damage_of_a_store_is_left_to_the_gateway(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").write_bytes(b"garbage")
    (tmp_path / "outbox.db.lock").touch()
    found = check_outbox(config(tmp_path))
    assert (found.verdict, "puts a damaged store aside" in found.remedy) == ("failed", True)


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EACCES, "install -d")]
)
def test_a_disk_without_room_needs_room_and_not_another_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    def refused(_directory: Path) -> tuple[float, float]:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(machine, "fsync_seconds", refused)
    *_, writing = check_disk(config(tmp_path))
    assert (writing.verdict, remedy in writing.remedy) == ("failed", True)


@pytest.mark.parametrize(
    ("memory", "verdict"),
    [
        (None, "skipped"),
        (Memory(1000 * MIB, 500 * MIB, 0.0), "ok"),
        (Memory(1000 * MIB, 500 * MIB, None), "ok"),
        (Memory(1000 * MIB, 50 * MIB, 0.0), "warning"),
        (Memory(1000 * MIB, 500 * MIB, 40.0), "warning"),
    ],
)
def test_scarce_memory_is_warned_of(memory: Memory | None, verdict: str) -> None:
    assert check_memory(memory).verdict == verdict


@pytest.mark.parametrize(
    ("temperature", "verdict"),
    [
        (None, "skipped"),
        (Temperature("cpu", 50.0, None), "ok"),
        (Temperature("cpu", 86.0, None), "warning"),
        (Temperature("cpu", 72.0, 80.0), "warning"),
    ],
)
def test_heat_is_warned_of(temperature: Temperature | None, verdict: str) -> None:
    assert check_temperature(temperature).verdict == verdict


@pytest.mark.parametrize(("load", "verdict"), [(None, "skipped"), (Load(1, 2), "ok"), (Load(9, 2), "warning")])
def test_a_busy_machine_is_warned_of(load: Load | None, verdict: str) -> None:
    assert check_load(load).verdict == verdict


@pytest.mark.parametrize(
    ("python", "sqlite", "verdicts"),
    [
        ((3, 11), (3, 51, 3), ["ok", "ok"]),
        ((3, 13), (3, 40, 1), ["ok", "warning"]),
        ((3, 10), (3, 54, 0), ["failed", "ok"]),
        ((3, 14), (3, 51, 2), ["failed", "warning"]),
    ],
)
def test_versions_with_known_faults_are_told(
    python: tuple[int, int], sqlite: tuple[int, ...], verdicts: list[str]
) -> None:
    assert [diagnosis.verdict for diagnosis in check_versions(python, sqlite)] == verdicts


def test_the_worst_verdict_counts() -> None:
    assert worst([]) == "ok"
    assert worst([Diagnosis("a", "warning", ""), Diagnosis("b", "skipped", "")]) == "warning"
    assert worst([Diagnosis("a", "failed", ""), Diagnosis("b", "ok", "")]) == "failed"
