"""The report of a session on the rig: one page that stands by itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from hil.rig.report import Report, session

if TYPE_CHECKING:
    from hil.rig.rig import Rig


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


def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a browser in the place of the real ones."""
    program = tmp_path / "bin/chromium"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_the_page_shows_the_picture_that_a_browser_has_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser(tmp_path, monkeypatch, 'for word; do case $word in --screenshot=*) echo png >"${word#*=}" ;; esac; done')
    report = Report(tmp_path / "report", "board.yaml")
    assert report.picture("fleet", "http://127.0.0.1:1/") == tmp_path / "report/fleet.png"
    assert "<img src=fleet.png alt='fleet'>" in report.page()


def test_a_browser_that_takes_no_picture_leaves_none_in_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser(tmp_path, monkeypatch, "exit 1")
    report = Report(tmp_path / "report", "board.yaml")
    assert report.picture("fleet", "http://127.0.0.1:1/") is None
    assert "<img" not in report.page()


def test_pictures_are_taken_of_the_fleet_the_device_its_events_and_the_rollouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser(tmp_path, monkeypatch, f'echo "$*" | grep -o "http://.*" >>{tmp_path}/asked')
    running = SimpleNamespace(running=True, log=tmp_path / "none", name="bridge")
    cloud = SimpleNamespace(bridge=running, broker=running, ports=SimpleNamespace(console=8080))
    site = SimpleNamespace(update_seconds={}, update_bytes={})
    strategy = SimpleNamespace(times={}, site=site, status="running", power=None)
    device = SimpleNamespace(attempt=lambda command, seconds: (f"{command}!", "", 0))
    report = Report(tmp_path / "report", "board.yaml")
    report.look(cast("Rig", SimpleNamespace(strategy=strategy, cloud=cloud, device=device, gateway="rig-gateway")))
    asked = (tmp_path / "asked").read_text().split()
    assert set(asked) == {
        f"http://127.0.0.1:8080/{path}" for path in ("", "events", "rollouts", "gateways/rig-gateway")
    }
    assert report.looks["critical chain"].startswith("systemd-analyze critical-chain")
