"""The pages in a real browser: they run, they stay up to date, and the policy stops what should not run."""

import time
from collections.abc import Iterator

import pytest

from cloud_bridge.console.app import create_app
from cloud_bridge.console.settings import ConsoleSettings
from gateway.wire.messages import ModelRef
from tests.cloud_bridge.console.conftest import metrics_text
from tests.simulators.bridge_data import BridgeData, a_fleet, a_status, an_event
from tests.simulators.browser import Browser, chromium
from tests.simulators.console_server import ConsoleServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture
def live() -> BridgeData:
    return a_fleet(time.time_ns())


def console_of(data: BridgeData) -> ConsoleServer:
    """Make a console on loopback without a token."""
    return ConsoleServer(lambda closing: create_app(data, ConsoleSettings(), metrics_text, is_closing=closing))


@pytest.fixture
def server(live: BridgeData) -> Iterator[ConsoleServer]:
    with console_of(live) as running:
        yield running


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


def test_the_overview_shows_a_new_anomaly_without_a_reload(
    server: ConsoleServer, browser: Browser, live: BridgeData
) -> None:
    browser.open(server.url + "/")
    browser.evaluate("window.loadedOnce = true")
    browser.wait_for("document.getElementById('link-state').textContent === 'live'")
    assert not browser.evaluate("document.body.textContent.includes('bearing-wear')")

    live.put_event(an_event("ev-77", label="bearing-wear"))
    browser.wait_for("document.querySelector('[sse-swap=anomalies] tbody tr').textContent.includes('bearing-wear')")
    browser.wait_for("document.querySelector('[aria-live=polite]').textContent.includes('bearing-wear')")
    live.set_gateway("plant-a", state="offline")
    browser.wait_for("!document.querySelector('[sse-swap=fleet]').textContent.includes('online')")
    assert browser.evaluate("window.loadedOnce")
    assert browser.complaints == []


def test_a_hostile_label_stays_text_when_it_comes_live(
    server: ConsoleServer, browser: Browser, live: BridgeData
) -> None:
    label = "<img src=/nothing onerror='window.hacked=1'><script>window.hacked=2</script>\n\nevent: fleet\ndata: gone"
    browser.open(server.url + "/")
    browser.wait_for("document.getElementById('link-state').textContent === 'live'")
    live.put_event(an_event("ev-78", label=label))
    browser.wait_for(
        "document.querySelector('[sse-swap=anomalies]').textContent.includes(\"onerror='window.hacked=1'\")"
    )
    assert browser.evaluate("document.querySelectorAll('main script, main img[onerror]').length") == 0
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.querySelector('[sse-swap=fleet]').textContent.includes('plant-a')")


def test_the_policy_stops_inline_scripts(server: ConsoleServer, browser: Browser) -> None:
    browser.open(server.url + "/delivery")
    browser.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x: onerror=\"window.hacked=1\">')")
    browser.wait_for("true")
    time.sleep(0.3)
    assert browser.evaluate("window.hacked") is None
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)


@pytest.mark.parametrize("path", ["/", "/events", "/events/ev-3", "/gateways/plant-a", "/delivery"])
@pytest.mark.parametrize("width", [390, 800, 1000, 1280])
def test_no_page_is_wider_than_the_screen(server: ConsoleServer, live: BridgeData, path: str, width: int) -> None:
    long = "x" * 64
    live.put_event(
        an_event("ev-79", label=long * 2, pipeline=long, model=ModelRef(name=long, version="1.2.3-rc.4+567"))
    )
    live.set_pipeline("plant-a", a_status(long, last_error=long * 4, inferences=10**12))
    live.put_letter(long, "sluice/v1/" + long * 3, b"y" * 200, long * 3)
    with Browser(width=width) as browser:
        browser.open(server.url + path)
        over = browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over == 0
        assert browser.complaints == []


def test_times_become_ages(server: ConsoleServer, browser: Browser) -> None:
    browser.open(server.url + "/")
    browser.wait_for("/^(now|[0-9]+ s ago)$/.test(document.querySelector('[sse-swap=fleet] time').textContent)")
