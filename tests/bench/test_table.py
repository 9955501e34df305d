"""What is said at the end of a measurement: each aim that was missed, how many there were, and an exit status."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.bench import identity, swap, vault
from tests.bench.__main__ import MISSED, main
from tests.bench.peers.compare import _rows as peers_rows
from tests.bench.table import at_least, at_most, closing, markdown, row

FAST = at_most("time without a model, longest", 4.0, 100.0, unit="ms")
SLOW = at_most("time without a model, p99", 40.0, 10.0, unit="ms")


def read(tmp_path: Path, results: dict[str, Any], *words: str) -> Result:
    file = tmp_path / "earlier.json"
    file.write_text(json.dumps({"machine": {}, **results}))
    return CliRunner().invoke(main, ["--from", str(file), *words])


@pytest.mark.parametrize(
    ("made", "met"),
    [
        (at_least("ratio", 0.87, 0.8), True),
        (at_least("ratio", 0.79, 0.8), False),
        (at_least("ratio", float("nan"), 0.8), False),
        (at_most("lost", 0, 0), True),
        (at_most("lost", 1, 0), False),
        (at_most("gap", float("nan"), 10.0), False),
    ],
)
def test_a_figure_is_held_against_its_aim_and_what_is_no_number_never_meets_it(made: dict[str, Any], met: bool) -> None:
    assert made["met"] is met


def test_an_earlier_run_whose_aims_were_met_ends_well(tmp_path: Path) -> None:
    result = read(tmp_path, {"swap-gap": {"rows": [FAST, row("told only", "3")]}}, "--markdown")
    assert result.exit_code == 0, result.output
    assert "| time without a model, longest | `swap-gap` | ≤ 100 ms | 4 ms, met |" in result.stdout
    assert "==> all 1 aims met" in result.stderr


def test_an_aim_that_was_missed_is_named_counted_and_the_exit_status(tmp_path: Path) -> None:
    result = read(tmp_path, {"swap-gap": {"rows": [FAST, SLOW]}}, "--markdown")
    assert result.exit_code == MISSED
    assert "40 ms, **missed** |" in result.stdout
    assert "==> missed: swap-gap: time without a model, p99: 40 ms, aim ≤ 10 ms" in result.stderr
    assert "==> 1 of 2 aims missed" in result.stderr


def test_a_result_that_nothing_judges_is_named_so_that_silence_does_not_pass_for_success() -> None:
    lines, is_met = closing({"vault-boot": {"times_as_long": 9.0}, "delta": {"skipped": "no library"}})
    assert is_met
    assert lines == ["not judged, because the result has no rows: vault-boot", "all 0 aims met"]
    assert "skipped" in markdown({"delta": {"skipped": "no library"}})


def test_the_comparison_judges_what_was_lost_of_ours_and_only_that() -> None:
    ours = {
        "accepted": 10,
        "lost": 1,
        "lost_in_drain": 0,
        "stored_twice": 0,
        "doubles": 2,
        "doubles_over_kill": 2,
        "first_after_seconds": 3.0,
    }
    assert [one["met"] for one in peers_rows(ours)] == [False, None, True, True, True, True]
    assert [one["met"] for one in peers_rows({**ours, "doubles_over_kill": 1})][-2:] == [False, True]
    assert next(one["met"] for one in peers_rows({**ours, "given_up_by_name": 1})), "the cloud was told of it"
    assert [one["met"] for one in peers_rows({"skipped": "the broker ended"})] == [False], "that is no success"
    assert peers_rows({}) == [], "it was not asked for"


@pytest.mark.slow
def test_benchmarks_of_vault_identity_and_swaps_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "MB", 20_000)
    monkeypatch.setattr(vault, "_SIZES", {"100 MB": 4_000_000})
    for result, rows in (
        (vault.decryption(), 2),
        (vault.memory(), 1),
        (identity.attestations(3), 3),
        (swap.gaps(3), 4),
    ):
        judged = [one["met"] for one in result["rows"]]
        assert len(judged) == rows
        assert None not in judged
