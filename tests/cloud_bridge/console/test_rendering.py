import pytest

from cloud_bridge.console.rendering import figure, grouped, moment, percent, segment, short, size


def test_a_time_is_shown_in_utc_and_carries_itself() -> None:
    assert moment("2026-01-31T13:00:00.250+01:00") == (
        '<time datetime="2026-01-31T12:00:00.250+00:00" title="2026-01-31 12:00:00 UTC">01-31 12:00:00</time>'
    )
    assert moment(1_769_860_800_000_000_000) == moment("2026-01-31T12:00:00.000Z") == moment("2026-01-31T12:00:00")


@pytest.mark.parametrize("absent", [None, "", 0, -5, 2**63])
def test_no_time_is_a_dash(absent: str | int | None) -> None:
    assert moment(absent) == "–"


def test_a_text_that_is_no_time_is_escaped_and_cut() -> None:
    assert moment("<b>soon</b>") == "&lt;b&gt;soon&lt;/b&gt;"
    assert len(moment("x" * 500)) == 40
    assert moment("0001-01-01T00:00:00+14:00") == "0001-01-01T00:00:00+14:00"


def test_figures_are_short() -> None:
    assert (size(0), size(1023), size(1536), size(5 * 2**40)) == ("0 B", "1023 B", "1.5 KiB", "5.0 TiB")
    assert (figure(None), figure(float("nan")), figure(0.123456), figure(123456.0)) == ("–", "–", "0.1235", "1.235e+05")
    assert grouped(1234567) == "1\N{THIN SPACE}234\N{THIN SPACE}567"
    assert short("x" * 200, 10) == "xxxxxxxxx…"


def test_a_bar_stays_in_its_box() -> None:
    assert [percent(value) for value in (-1.0, 0.5, 7.0, float("nan"))] == ["0.0", "50.0", "100.0", "0"]


def test_a_segment_of_a_path_cannot_leave_it() -> None:
    assert segment("../a?b#c&d=e\ud800") == "..%2Fa%3Fb%23c%26d%3De%3F"
