"""Bundles on media: found wherever media are mounted, and nothing hides them."""

import os
from pathlib import Path

from gateway.osupdate.media import MAX_BUNDLES, bundles_on


def test_bundles_are_found_in_the_top_folder_of_media_alone(tmp_path: Path) -> None:
    for name in (
        "here.raucb",
        "stick/there.raucb",
        "user/label/there.raucb",
        "user/label/deep/no.raucb",
        "stick/a.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    found = bundles_on([tmp_path / "not-there", tmp_path])
    assert [str(file.relative_to(tmp_path)) for file, _, _ in found] == [
        "here.raucb",
        "stick/there.raucb",
        "user/label/there.raucb",
    ]
    assert {size for _, size, _ in found} == {3}


def test_what_is_no_file_is_left_out_and_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.raucb").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b.raucb").symlink_to("/etc/shadow")
    (tmp_path / "c.raucb").mkdir()
    os.mkfifo(tmp_path / "d.raucb")
    (tmp_path / "e.raucb").write_bytes(b"")
    assert [file.name for file, _, _ in bundles_on([tmp_path])] == ["e.raucb"]


def test_a_medium_full_of_bundles_is_looked_at_up_to_a_number(tmp_path: Path) -> None:
    for number in range(2 * MAX_BUNDLES):
        (tmp_path / f"{number}.raucb").write_bytes(b"")
    assert len(bundles_on([tmp_path])) == MAX_BUNDLES
