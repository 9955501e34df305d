import asyncio
import threading
import time
from collections.abc import Iterator
from itertools import count

import httpx
import pytest

from cloud_bridge.console.app import create_app
from cloud_bridge.console.live import REFRESH_SECONDS, Feed, message
from cloud_bridge.console.settings import ConsoleSettings
from cloud_bridge.errors import StoreError
from tests.cloud_bridge.console.conftest import metrics_text
from tests.simulators.bridge_data import BridgeData, an_event
from tests.simulators.console_server import ConsoleServer
from tests.simulators.waiting import wait_for

SECOND_NS = 1_000_000_000


class Source:
    """A feed's two callables and its clock, with knobs."""

    def __init__(self) -> None:
        self.change = 1
        self.ns = SECOND_NS
        self.failing = False
        self.renders = 0
        self.feed = Feed(self.change_counter, self.render, lambda: self.ns)

    def change_counter(self) -> int:
        if self.failing:
            raise StoreError("gone")
        return self.change

    def render(self) -> dict[str, str]:
        self.renders += 1
        return {"part": f"change {self.change}"}


async def test_a_feed_renders_once_for_everyone_and_at_most_twice_a_second() -> None:
    source = Source()
    answers = await asyncio.gather(*(source.feed.latest() for _ in range(20)))
    assert answers == [{"part": "change 1"}] * 20
    source.change = 2
    source.ns += SECOND_NS // 4
    assert await source.feed.latest() == {"part": "change 1"}
    source.ns += SECOND_NS // 4
    assert await source.feed.latest() == {"part": "change 2"}
    assert source.renders == 2


async def test_a_feed_renders_again_without_a_change_only_after_a_while() -> None:
    source = Source()
    await source.feed.latest()
    source.ns += int(REFRESH_SECONDS * SECOND_NS) - 1
    await source.feed.latest()
    assert source.renders == 1
    source.ns += SECOND_NS
    await source.feed.latest()
    assert source.renders == 2


async def test_a_feed_keeps_the_last_state_while_the_store_cannot_be_read() -> None:
    source = Source()
    await source.feed.latest()
    source.failing, source.change = True, 2
    source.ns += SECOND_NS
    assert await source.feed.latest() == {"part": "change 1"}
    source.failing = False
    source.ns += SECOND_NS
    assert await source.feed.latest() == {"part": "change 2"}


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_line_end_in_a_label_cannot_end_a_message(ending: str) -> None:
    hostile = f"<td>a{ending}{ending}event: fleet{ending}data: forged</td>"
    assert message("anomalies", hostile) == (
        b"event: anomalies\ndata: <td>a\ndata: \ndata: event: fleet\ndata: data: forged</td>\n\n"
    )


class Listener:
    """Reads an event stream in a thread."""

    def __init__(self, url: str) -> None:
        self.messages: list[tuple[float, str, str]] = []  # when, which fragment, its HTML
        self.ended = False
        self._url = url
        self._thread = threading.Thread(target=self._read, name="listener")
        self._thread.start()

    def has(self, name: str, text: str) -> bool:
        return any(name == found and text in html for _, found, html in list(self.messages))

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _read(self) -> None:
        with httpx.stream("GET", self._url, timeout=20) as response:
            assert response.status_code == 200, response.status_code
            assert response.headers["content-type"].startswith("text/event-stream")
            name, lines = "", list[str]()
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    lines.append(line.removeprefix("data: "))
                elif not line and lines:
                    self.messages.append((time.monotonic(), name, "\n".join(lines)))
                    lines = []
        self.ended = True


def console_of(data: BridgeData) -> ConsoleServer:
    """Make a console on loopback without a token."""
    return ConsoleServer(lambda closing: create_app(data, ConsoleSettings(), metrics_text, is_closing=closing))


@pytest.fixture
def server(data: BridgeData) -> Iterator[ConsoleServer]:
    with console_of(data) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "fragments"),
    [
        ("/live/overview", {"headline", "newest", "fleet", "anomalies", "pipelines", "delivery"}),
        ("/live/delivery", {"delivery", "streams", "gaps", "letters"}),
        ("/live/gateways/plant-a", {"gateway", "pipelines", "anomalies", "streams"}),
    ],
)
def test_a_stream_begins_with_everything_it_shows(server: ConsoleServer, path: str, fragments: set[str]) -> None:
    listener = Listener(server.url + path)
    wait_for(lambda: {name for _, name, _ in list(listener.messages)} == fragments, what="all fragments")
    server.stop()
    listener.join()


def test_a_change_reaches_an_open_page_soon(server: ConsoleServer, data: BridgeData) -> None:
    listener = Listener(server.url + "/live/overview")
    wait_for(lambda: listener.has("delivery", "Records kept"), what="the first state")
    assert not listener.has("anomalies", "bearing-wear")
    changed_at = time.monotonic()
    data.put_event(an_event("ev-99", label="bearing-wear"))
    wait_for(lambda: listener.has("anomalies", "bearing-wear"), what="the change", seconds=5)
    assert time.monotonic() - changed_at < 4
    assert listener.has("newest", "bearing-wear")
    server.stop()
    listener.join()


def test_a_stream_sends_only_what_changed_and_at_most_about_twice_a_second(
    server: ConsoleServer, data: BridgeData
) -> None:
    listener = Listener(server.url + "/live/overview")
    wait_for(lambda: listener.has("delivery", "Records kept"), what="the first state")
    begin = time.monotonic()
    for number in count():
        data.put_letter("malformed", "sluice/v1/plant-a/event/x", b"%d" % number)
        if time.monotonic() - begin > 2.2:
            break
        time.sleep(0.01)
    after = [name for at, name, _ in list(listener.messages) if begin + 0.1 < at < begin + 2.1]
    assert 1 <= after.count("delivery") <= 5
    assert not {"fleet", "anomalies", "pipelines"} & set(after)
    server.stop()
    listener.join()


def test_an_open_page_does_not_keep_the_server_from_stopping(server: ConsoleServer) -> None:
    listener = Listener(server.url + "/live/overview")
    wait_for(lambda: listener.has("delivery", "Records kept"), what="the first state")
    begin = time.monotonic()
    server.stop()
    assert time.monotonic() - begin < 2.5  # before the server's own patience ends
    listener.join()
    assert listener.ended


def test_more_streams_than_can_be_served_are_refused(data: BridgeData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud_bridge.console.app.MAX_STREAMS", 1)
    with console_of(data) as server:
        listener = Listener(server.url + "/live/overview")
        wait_for(lambda: listener.messages, what="the first stream")
        assert httpx.get(server.url + "/live/delivery").status_code == 429
    listener.join()
    with console_of(data) as server:
        for _ in range(3):  # one that has left makes room, as soon as the server has noticed
            wait_for(lambda: listens(server.url + "/live/overview"), what="room for one more")


def listens(url: str) -> bool:
    """Open a live page for a moment; False if there is no room."""
    with httpx.stream("GET", url) as response:
        if response.status_code == 429:
            return False
        assert response.status_code == 200
        next(response.iter_raw())
        return True


async def test_a_gateway_never_heard_of_has_no_stream(client: httpx.AsyncClient) -> None:
    for name in ("nobody", "NO", "%00"):
        assert (await client.get(f"/live/gateways/{name}")).status_code == 404
