"""What updates of the system read of the device: health, and what the slots' images are approved for."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from gateway.osupdate.surroundings import missing_approval, outgrown, read_health
from gateway.vault import policy

PCR11 = {"a": "11" * 32, "b": "22" * 32}


@pytest.fixture
def approvals(tmp_path: Path) -> Path:
    """Of a device whose slot a has an image of generation 1, and slot b one of generation 2."""
    private = generate_private_key(SECP256R1())
    for slot, generation in (("a", 1), ("b", 2)):
        state = policy.BootState(name=f"{generation}.0.0-{slot}", pcrs={"11": PCR11[slot]}, counter_at_most=generation)
        (tmp_path / f"{slot}.policy.json").write_bytes(policy.encode(policy.sign(state, private)))
    (tmp_path / "first.policy.json").write_bytes(policy.encode(policy.sign(policy.FirstCount(name="first"), private)))
    return tmp_path


@pytest.mark.parametrize(
    ("slot", "counter", "words"),
    [
        ("a", 1, ""),
        ("a", 2, "the image in slot a (1.0.0-a) gets the vault's key up to counter 1; this device is at 2"),
        ("b", 2, ""),
        ("a", None, ""),  # no counter, no bound
        ("first", 2, ""),  # no approval of an image
        ("c", 2, ""),  # nothing says that it cannot
    ],
)
def test_an_image_is_outgrown_when_the_counter_has_passed_what_it_is_approved_for(
    approvals: Path, slot: str, counter: int | None, words: str
) -> None:
    assert outgrown(approvals, slot, counter) == words


def test_an_approval_that_is_damaged_outgrows_nothing(approvals: Path) -> None:
    (approvals / "a.policy.json").write_bytes(b'{"approval": {"kind"')
    assert outgrown(approvals, "a", 2) == ""


def test_an_approval_is_found_by_what_the_image_measures_else_by_its_slot(approvals: Path) -> None:
    assert missing_approval(approvals, "b", PCR11["b"]) == ""
    assert missing_approval(approvals, "b", "") == ""
    assert "PCR 11 3333" in missing_approval(approvals, "b", "33" * 32)
    (approvals / "b.policy.json").unlink()
    assert "b.policy.json is not there" in missing_approval(approvals, "b", "")


def test_the_report_of_this_boot_that_the_disk_did_not_take_comes_first(tmp_path: Path) -> None:
    passing, kept = tmp_path / "passing.json", tmp_path / "kept.json"
    assert read_health(passing, kept) is None
    report = {"boot_id": "1", "image": {"version": "1.0.0"}, "verdict": "healthy", "at": "then"}
    kept.write_text(json.dumps(report))
    found = read_health(passing, kept)
    assert found is not None
    assert (found.version, found.healthy) == ("1.0.0", True)
    passing.write_text(json.dumps({**report, "boot_id": "2", "verdict": "unhealthy"}))
    found = read_health(passing, kept)
    assert found is not None
    assert (found.boot_id, found.healthy) == ("2", False)
