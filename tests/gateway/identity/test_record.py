"""What the device keeps about its identity."""

import os
import resource
import tempfile
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.errors import ConfigError
from gateway.identity.errors import IdentityError
from gateway.identity.record import IdentityFiles, IdentityRecord, read_claim_file
from gateway.owner import as_owner

NOBODY = 65534
ENROLLED = IdentityRecord(url="https://b:1", bundle="PEM", trust_domain="d", enrolled=True, level="tpm", floor_ns=7)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    record = IdentityRecord(url="https://b:1", bundle="PEM", trust_domain="d", enrolled=True, level="tpm", floor_ns=7)
    IdentityFiles(tmp_path).write(record)
    assert IdentityFiles(tmp_path).read() == record


def test_without_a_file_there_is_an_empty_record(tmp_path: Path) -> None:
    assert IdentityFiles(tmp_path).read() == IdentityRecord()


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b'{"url": 5}', b'{"url": "x"', b"\xff\xfe"])
def test_a_damaged_record_is_kept_aside_and_the_device_begins_anew(tmp_path: Path, content: bytes) -> None:
    files = IdentityFiles(tmp_path)
    files.directory.mkdir()
    (files.directory / "identity.json").write_bytes(content)
    assert files.read() == IdentityRecord()
    assert (files.directory / "identity.damaged").read_bytes() == content


def test_nobody_else_may_read_the_directory_or_the_claim(tmp_path: Path) -> None:
    files = IdentityFiles(tmp_path)
    files.leave_claim("sluice1.a.b")
    assert files.directory.stat().st_mode & 0o077 == 0
    assert (files.directory / "claim").stat().st_mode & 0o077 == 0


def test_a_claim_is_there_until_it_is_dropped(tmp_path: Path) -> None:
    files = IdentityFiles(tmp_path)
    assert files.read_claim() is None
    files.leave_claim("sluice1.a.b")
    assert files.read_claim() == "sluice1.a.b"
    files.drop_claim()
    assert files.read_claim() is None
    files.drop_claim()


def test_a_claim_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"claim_file .*nowhere.*token create"):
        read_claim_file(tmp_path / "nowhere")


def test_a_record_that_cannot_be_opened_for_now_is_not_put_aside(tmp_path: Path) -> None:
    files = IdentityFiles(tmp_path)
    files.write(ENROLLED)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
    try:
        with pytest.raises(IdentityError, match="cannot be read now"):
            files.read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert files.read() == ENROLLED


def test_a_record_that_was_put_aside_and_can_be_read_is_taken_back(tmp_path: Path) -> None:
    files = IdentityFiles(tmp_path)
    files.write(ENROLLED)
    (files.directory / "identity.json").rename(files.directory / "identity.damaged")
    assert files.look() == IdentityRecord(), "who only looks moves nothing"
    assert files.read() == ENROLLED
    assert [each.name for each in files.directory.iterdir()] == ["identity.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_what_belongs_to_another_user_is_told_and_stays() -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        files = IdentityFiles(state)
        files.write(ENROLLED)
        files.leave_claim("sluice1.a.b")
        for each in (state, files.directory):
            os.chown(each, NOBODY, NOBODY)
        with as_owner(state), capture_logs() as logs:
            with pytest.raises(IdentityError, match=r"belongs to another user.*chown"):
                files.read()
            assert files.read_claim() is None
            assert files.read_claim() is None
        assert [each["event"] for each in logs] == ["claim_unreadable"], "once"
        assert (files.read(), files.read_claim()) == (ENROLLED, "sluice1.a.b")
