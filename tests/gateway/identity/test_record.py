"""What the device keeps about its identity."""

from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.identity.record import IdentityFiles, IdentityRecord, read_claim_file


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
