"""The YAML of a rig is looked at before packages are installed, images are built and labgrid reads it."""

from pathlib import Path

import pytest

from hil.rig import environment

REPO = Path(__file__).parents[2]
ENVS = REPO / "hil/envs"
FILLED = "targets: {main: {features: [tpm]}}\nimages: {disk: disk.raw}\n"


@pytest.mark.parametrize("name", ["virtual-amd64.yaml", "virtual-arm64.yaml"])
def test_the_virtual_rigs_have_nothing_to_fill_in(name: str) -> None:
    assert environment.wrong(ENVS / name) == []


@pytest.mark.parametrize("name", ["coral-devboard.yaml", "jetson.yaml"])
def test_what_a_board_of_ours_leaves_to_fill_in_is_told_line_by_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert environment.main([str(ENVS / name)]) == 2
    told = capsys.readouterr().err
    assert f"{name}:8: fill in <192.0.2.1>" in told
    assert "fill in <shelly_gen2>, <http://192.0.2.10>" in told
    assert f"{name}:1:" not in told  # the comment that explains the brackets


def test_a_file_that_was_filled_in_is_taken(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(b"")
    (tmp_path / "mine.yaml").write_text(FILLED)
    assert environment.main([str(tmp_path / "mine.yaml")]) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file or directory; there are: hil/envs/coral-devboard.yaml"),
        (FILLED, "images.disk: "),
        ("targets: {main: [\n", "line 2, column 1"),
        ("just text\n", "no `targets`"),
        ("targets: {}\n", "called `main`"),
    ],
)
def test_what_describes_no_rig_is_told_with_its_place(text: str | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    (found,) = environment.wrong(file)
    assert found.startswith(str(file))
    assert told in found
