"""Options that several commands share: what is no number is refused before anything is done with it."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main


@pytest.mark.parametrize("value", ["nan", "NaN", "-nan", "inf", "1e999"])
@pytest.mark.parametrize(
    "words",
    [
        ("appliance", "health", "--soak"),
        ("appliance", "health", "--start-within"),
        ("qualify-storage", "write", ".", "--witness", "heard.txt", "--minutes"),
        ("try", "recording.csv", "--pipeline", "dock", "--rate-hz"),
        ("ota", "install", "dock", "finder@1.0.0", "--wait"),
    ],
    ids=lambda words: words[-1],
)
def test_what_is_no_finite_number_is_refused_with_exit_status_2(
    words: tuple[str, ...], value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recording.csv").write_text("value\n1\n")
    done = CliRunner().invoke(main, [*words, value])
    assert done.exit_code == 2, done.output
    assert f"'{words[-1]}'" in done.output
    assert "finite number" in done.output or "range" in done.output
    assert [each.name for each in tmp_path.iterdir()] == ["recording.csv"], "nothing was done"
