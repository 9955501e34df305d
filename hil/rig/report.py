"""What a session on the rig came to, as a page: tests, boot times, consoles, and pictures of the console page."""

import html
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from hil.loopback.children import RigError
from hil.rig.patience import factor

if TYPE_CHECKING:
    from hil.rig.rig import Rig

_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c2330 }
table { border-collapse: collapse; width: 100% }
td, th { padding: .3rem .6rem; text-align: left; vertical-align: top }
tr { border-bottom: 1px solid #dde2ea }
.passed { color: #16713a } .failed { color: #b3261e } .skipped { color: #6b7380 }
pre { background: #f4f6f9; padding: .8rem; overflow: auto; font-size: 12px; max-height: 32rem } img { max-width: 100% }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
@media (prefers-color-scheme: dark) { body { background: #14181f; color: #e4e8ee } pre { background: #1d232d }
tr { border-color: #2b3340 } .passed { color: #5fce8a } .failed { color: #ff8a80 } }
"""
_LOOKS: Final = {
    "blame": "systemd-analyze blame --no-pager | head -25",
    "critical chain": "systemd-analyze critical-chain --no-pager",
    "times": "systemd-analyze time --no-pager",
    "exposure": "systemd-analyze security --no-pager gateway.service | tail -1",
    "memory": "free -m",
    "disk": "df -h / /data /data/outbox /efi",
    "slots": "rauc status",
}

_PAGES: Final = {"fleet": "", "events": "events", "rollouts": "rollouts"}
"""Pages of the bridge's console that pictures are taken of, besides that of the device."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test ended."""

    name: str
    state: str
    seconds: float
    detail: str = ""


class Report:
    """Collects while the session runs, and writes `index.html` into its folder at the end. Also a pytest plugin."""

    def __init__(self, folder: Path, environment: str) -> None:
        self.folder = folder
        self.environment = environment
        self.rig: Rig | None = None
        self.outcomes: list[Outcome] = []
        self.looks: dict[str, str] = {}
        self.pictures: list[Path] = []
        self.times: dict[str, float] = {}
        self.transfers: dict[str, tuple[int, int]] = {}
        self._begun = time.monotonic()
        self._written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())

    # ---- pytest ------------------------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a test ended."""
        if report.when == "call" or report.outcome != "passed":
            detail = "" if report.outcome == "passed" else str(report.longrepr)
            if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
                detail = str(report.longrepr[2])
            state = "failed" if report.outcome == "failed" else report.outcome
            self.outcomes.append(Outcome(report.nodeid, state, report.duration, detail))

    def pytest_sessionfinish(self) -> None:
        """Write the page."""
        self.write()

    # ---- the rig -----------------------------------------------------------------------------------

    def look(self, rig: "Rig") -> None:
        """Ask a device that still runs how its boot went, and take the picture of the bridge's console."""
        self.times = dict(rig.strategy.times) | {f"update to {k}": v for k, v in _updates(rig).items()}
        self.transfers = dict(rig.strategy.site.update_bytes)
        if rig.strategy.status in ("off", "flashed"):
            return
        for title, command in _LOOKS.items():
            try:
                self.looks[title] = rig.device.attempt(command, seconds=60.0)[0]
            except RigError as error:
                self.looks[title] = str(error)
        if rig.cloud.bridge.running:
            for name, path in {**_PAGES, "gateway": f"gateways/{rig.gateway}"}.items():
                self.picture(name, f"http://127.0.0.1:{rig.cloud.ports.console}/{path}")
        self._consoles(rig)

    def picture(self, name: str, url: str) -> Path | None:
        """Take a picture of a page with a headless Chromium; None where there is none."""
        browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if browser is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{name}.png"
        command = [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,900"),
            *("--disable-background-networking", "--virtual-time-budget=4000", f"--screenshot={target}", url),
        ]
        try:
            subprocess.run(command, capture_output=True, check=False, timeout=60.0)
        except subprocess.TimeoutExpired:
            return None
        if not target.exists():
            return None
        self.pictures.append(target)
        return target

    def _consoles(self, rig: "Rig") -> None:
        log: Path | None = getattr(getattr(rig.strategy.power, "machine", None), "console_log", None)
        if log is not None and log.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, self.folder / "console.log")
        for child in (rig.cloud.bridge, rig.cloud.broker):
            if child.log.exists():
                shutil.copyfile(child.log, self.folder / f"{child.name}.log")

    # ---- the page ----------------------------------------------------------------------------------

    def write(self) -> Path:
        """Write the page; returns it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        page = self.folder / "index.html"
        page.write_text(self.page(), encoding="utf-8")
        return page

    def page(self) -> str:
        """Return the page."""
        counts = {
            state: sum(each.state == state for each in self.outcomes) for state in ("passed", "failed", "skipped")
        }
        parts = [
            f"<!doctype html><html lang=en><meta charset=utf-8><title>Rig report</title><style>{_STYLE}</style>",
            "<h1>Rig report</h1>",
            f"<p>{html.escape(self.environment)} · {self._written} · {time.monotonic() - self._begun:.0f} s · ",
            " · ".join(f"<span class={state}>{count} {state}</span>" for state, count in counts.items()),
            "</p>",
            self._table("Times", [(name, f"{seconds:.1f} s") for name, seconds in self.times.items()]),
            "<p>On a virtual board the processors are emulated: these times compare releases, not boards.</p>"
            if "virtual" in self.environment and self.times
            else "",
            self._table("Bytes of updates", [(name, _share(*counts)) for name, counts in self.transfers.items()]),
            "<h2>Tests</h2><table><tr><th>test<th>result<th>seconds</tr>",
        ]
        for each in self.outcomes:
            why = (
                f"<details><summary>why</summary><pre>{html.escape(each.detail)}</pre></details>" if each.detail else ""
            )
            ended = f"<td class={each.state}>{each.state}<td>{each.seconds:.1f}"
            parts.append(f"<tr><td>{html.escape(each.name)}{why}{ended}</tr>")
        parts.append("</table>")
        parts += [f"<h2>{html.escape(name)}</h2><pre>{html.escape(text)}</pre>" for name, text in self.looks.items()]
        parts += [f"<h2>{picture.stem}</h2><img src={picture.name} alt='{picture.stem}'>" for picture in self.pictures]
        logs = sorted(file for file in self.folder.glob("*.log"))
        if logs:
            parts.append("<h2>Logs</h2>")
        for log in logs:
            text = log.read_text(errors="replace")
            parts.append(
                f"<details><summary>{log.name}, {len(text.splitlines())} lines</summary>"
                f"<pre>{html.escape(text[-200_000:])}</pre></details>"
            )
        return "\n".join(parts)

    @staticmethod
    def _table(title: str, rows: list[tuple[str, str]]) -> str:
        if not rows:
            return ""
        cells = "".join(f"<tr><td>{html.escape(name)}<td>{html.escape(value)}</tr>" for name, value in rows)
        return f"<h2>{title}</h2><table>{cells}</table>"


def _share(fetched: int, full: int) -> str:
    return f"{fetched / 1e6:.1f} MB of {full / 1e6:.1f} MB, {fetched / max(full, 1):.1%}"


def _updates(rig: "Rig") -> dict[str, float]:
    site: Any = rig.strategy.site
    found: dict[str, float] = dict(site.update_seconds)
    return found


@contextmanager
def session(look: Callable[[], None], close: Callable[[], None]) -> Iterator[None]:
    """Look at the device once more when a session ends, and whatever comes of that, switch all off.

    A device that a test has left broken may not answer.
    """
    try:
        yield
    finally:
        try:
            look()
        finally:
            close()


# ---- as a plugin: `-p hil.rig.report` --------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Begin to collect, where a folder is named by the environment."""
    place = os.environ.get("SLUICE_RIG_REPORT")
    if place and not hasattr(config, "workerinput"):
        environment = str(config.getoption("lg_env", None) or "")
        config.pluginmanager.register(Report(Path(place), environment), "sluice-rig-report")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test as much more time as the rig waits longer."""
    if (times := factor()) == 1.0:
        return
    for item in items:
        limit = item.get_closest_marker("timeout")
        if limit is not None:
            item.add_marker(pytest.mark.timeout(limit.args[0] * times), append=False)
