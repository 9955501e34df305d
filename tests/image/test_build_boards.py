"""Targets: what is read from their folders, and what they say is missing."""

import hashlib
from pathlib import Path

import pytest

from image.builder import boards
from image.builder.boards import Board, Part, check_vendor
from image.builder.cli import main
from image.builder.errors import BuildError, MissingError

IMAGE = Path(__file__).parents[2] / "image"


@pytest.mark.parametrize("name", boards.names(IMAGE))
def test_every_target_can_be_read(name: str) -> None:
    board = boards.load(IMAGE, name)
    assert board.compatible == f"sluice-{name}"
    assert board.partitions.root >= 512 << 20
    assert "rauc" in board.packages
    assert "dracut" in board.packages


def test_the_targets_are_those_that_are_promised() -> None:
    assert boards.names(IMAGE) == ["coral-devboard", "jetson", "uefi-amd64", "uefi-arm64"]


def test_the_arm64_kernel_is_the_one_with_a_tpm_driver() -> None:
    # Debian 13's generic arm64 kernel has TCG_TIS=n.
    assert "linux-image-cloud-arm64" in boards.load(IMAGE, "uefi-arm64").packages


def test_an_unknown_target_names_those_there_are() -> None:
    with pytest.raises(BuildError, match="uefi-amd64"):
        boards.load(IMAGE, "toaster")


@pytest.mark.parametrize("name", ["coral-devboard", "jetson"])
def test_missing_parts_of_a_vendor_are_listed_with_where_to_get_them(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--output", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    for part in boards.load(IMAGE, name).vendor:
        assert (part.path in told) == part.required
        assert (part.source in told) == part.required


def _board(part: Part) -> Board:
    plain = boards.load(IMAGE, "coral-devboard")
    return Board(**{field: getattr(plain, field) for field in plain.__slots__ if field != "vendor"}, vendor=(part,))


def test_a_part_is_checked_by_its_digest_and_by_what_it_must_contain(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"\xd0\x0d\xfe\xed and more")
    digest = hashlib.sha256((tmp_path / "part").read_bytes()).hexdigest()
    good = Part("part", "a part", "somewhere", contains="\u00d0\r\u00fe\u00ed", sha256=digest)
    assert check_vendor(_board(good), tmp_path) == {good: tmp_path / "part"}
    with pytest.raises(MissingError, match="it is something else"):
        check_vendor(_board(Part("part", "a part", "somewhere", contains="U-Boot")), tmp_path)
    with pytest.raises(MissingError, match="SHA-256"):
        check_vendor(_board(Part("part", "a part", "somewhere", sha256="0" * 64)), tmp_path)


def test_an_optional_part_may_be_absent(tmp_path: Path) -> None:
    assert check_vendor(_board(Part("part", "a part", "somewhere", required=False)), tmp_path) == {}


@pytest.mark.parametrize(("text", "expected"), [("160M", 160 << 20), ("2G", 2 << 30), ("512", 512)])
def test_sizes_are_in_powers_of_1024(text: str, expected: int) -> None:
    assert boards.size(text) == expected


@pytest.mark.parametrize("text", ["", "1T", "-1M", "1.5G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        boards.size(text)
