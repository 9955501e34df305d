"""The report of a session on the rig: one page that stands by itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hil.rig.report import Report, session


def ended(name: str, outcome: str, why: str = "") -> Any:
    return cast(Any, SimpleNamespace(nodeid=name, outcome=outcome, duration=1.25, when="call", longrepr=why))


def test_the_page_tells_each_test_its_time_and_why_it_failed(tmp_path: Path) -> None:
    report = Report(tmp_path / "report", "hil/envs/virtual-amd64.yaml")
    report.pytest_runtest_logreport(ended("test_boot.py::test_boots", "passed"))
    report.pytest_runtest_logreport(ended("test_boot.py::test_breaks", "failed", "assert <slot> == 'a'"))
    report.times = {"booted": 131.2}
    report.looks = {"critical chain": "graphical.target @20s"}
    page = report.write().read_text()
    assert "1 passed" in page
    assert "1 failed" in page
    assert "assert &lt;slot&gt; == &#x27;a&#x27;" in page
    assert "131.2 s" in page
    assert "graphical.target @20s" in page
    assert "emulated" in page


def test_logs_beside_the_page_are_shown_in_it(tmp_path: Path) -> None:
    report = Report(tmp_path, "board.yaml")
    (tmp_path / "console.log").write_text("Booting <Linux>\n")
    page = report.page()
    assert "Booting &lt;Linux&gt;" in page
    assert "emulated" not in page


def test_a_device_that_does_not_answer_at_the_end_is_switched_off_all_the_same() -> None:
    told: list[str] = []

    def look() -> None:
        told.append("looked")
        raise OSError("the console is gone")

    with pytest.raises(OSError, match="console is gone"), session(look, lambda: told.append("closed")):
        pass
    assert told == ["looked", "closed"]
