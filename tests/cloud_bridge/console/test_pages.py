import hashlib
import re
from html.parser import HTMLParser

import httpx
import pytest

from cloud_bridge.console.app import create_app
from cloud_bridge.console.rendering import Pages
from cloud_bridge.console.settings import ConsoleSettings
from gateway.wire.messages import EvidenceLink
from tests.cloud_bridge.console.conftest import metrics_text
from tests.simulators.bridge_data import TINY_JPEG, BridgeData, a_status, an_event

PAGES = [
    "/",
    "/events",
    "/events/ev-1",
    "/events/ev-2",
    "/events/ev-3",
    "/gateways/plant-a",
    "/gateways/yard-b",
    "/delivery",
]
HOSTILE = "</td></table><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{4242*2}}\u202e\u0000\r\n\r\ndata: x"
ELEMENTS = frozenset(
    re.findall(
        r"\S+",
        """
        a bdi body br button circle code dd div dl dt figcaption figure form h1 h2 head header html img input label
        line link main meta nav option p path polyline rect script section select small span strong svg table tbody
        td th thead time title tr
        """,
    )
)
VOID = frozenset({"br", "img", "input", "link", "meta", "circle", "line", "path", "polyline", "rect"})


class Strict(HTMLParser):
    """Checks that elements nest, that each is one of ours, and that none runs anything inline."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.mistakes: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in ELEMENTS:
            self.mistakes.append(f"<{tag}>")
        self.mistakes += [f"{tag} {name}" for name in given if name.startswith("on") or name == "style"]
        for name in ("href", "src", "action", "sse-connect"):
            if name in given and not re.fullmatch(r"[/#][^/\\].*|/", given[name] or ""):
                self.mistakes.append(f"{tag} {name}={given[name]}")
        if tag == "script" and not (given.get("src") or "").startswith("/static/"):
            self.mistakes.append("inline script")
        if tag == "img" and "alt" not in given:
            self.mistakes.append("img without alt")
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(f"</{tag}> does not fit")

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Strict:
    """Parse a page; mistakes fail the test."""
    page = Strict()
    page.feed(html)
    page.close()
    assert page.mistakes == []
    assert page.open == []
    assert len(page.ids) == len(set(page.ids)), "an id stands twice"
    return page


@pytest.fixture
def hostile() -> BridgeData:
    """Everything that a device may choose is as bad as it can be."""
    data = BridgeData()
    data.set_gateway("plant-a", version=HOSTILE)
    link = EvidenceLink(evidence_id=HOSTILE, content_type="image/jpeg", size_bytes=1)
    wave = EvidenceLink(evidence_id="w", content_type=HOSTILE, size_bytes=1)
    for event_id, evidence in ((HOSTILE, link), ("ev-x", wave), ("ev-y", None)):
        data.put_event(
            an_event(
                event_id,
                label=HOSTILE,
                zone=HOSTILE,
                pipeline=HOSTILE,
                source=HOSTILE,
                rule=HOSTILE,
                at=HOSTILE,
                started_at=HOSTILE,
                ended_at=HOSTILE,
                evidence=evidence,
            )
        )
    data.put_evidence("plant-a", HOSTILE, TINY_JPEG, HOSTILE)
    data.put_evidence("plant-a", "w", HOSTILE.encode(), HOSTILE)
    data.set_pipeline(
        "plant-a", a_status(HOSTILE, last_error=HOSTILE, backend=HOSTILE, dropped={HOSTILE: 3}, at=HOSTILE)
    )
    data.put_letter(HOSTILE, HOSTILE, HOSTILE.encode(), HOSTILE)
    data.put_gap("plant-a", 1, 2, HOSTILE)
    return data


@pytest.mark.parametrize("path", [*PAGES, "/nowhere", "/events/nothing", "/gateways/nobody", "/events?limit=0"])
async def test_every_page_is_well_formed_and_runs_nothing_inline(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    page = read(response.text)
    assert "main" in response.text
    assert "Sluice" in page.text


async def test_the_overview_says_how_everything_is(client: httpx.AsyncClient) -> None:
    text = " ".join(read((await client.get("/")).text).text.split())
    for words in (
        "1/2 gateways online",
        "plant-a 0.1.0 online",
        "yard-b 0.0.9 offline",
        "1 in trouble",
        "imbalance 0.73",
        "person 0.73",
        "vibration-ae 1.2.0",
        "degraded lost B",
        "Last error: camera /dev/video0 is gone",
        "Duplicates absorbed0",
        "Numbers given up5",
        "Dead letters1",
    ):
        assert words in text, words


async def test_what_a_gateway_told_before_it_went_away_does_not_look_like_now(
    client: httpx.AsyncClient, data: BridgeData
) -> None:
    html = (await client.get("/")).text
    assert '<span class="state dim">degraded</span>' in html
    assert "<strong>9.7</strong> inferences/s" in html
    data.set_gateway("yard-b")
    html = (await client.get("/")).text
    assert '<span class="state warn">degraded</span>' in html
    assert "<strong>19.4</strong> inferences/s" in html


async def test_phases_of_an_event_are_one_row(client: httpx.AsyncClient) -> None:
    html = (await client.get("/")).text
    assert html.count('href="/events/ev-1?') == 1
    assert html.count('href="/events/ev-2?') == 2  # its picture and its name


async def test_a_thumbnail_stands_where_the_picture_has_come(client: httpx.AsyncClient, data: BridgeData) -> None:
    assert '<img alt="" src="/api/v1/evidence/pic-1?gateway=yard-b">' in (await client.get("/")).text
    late = EvidenceLink(evidence_id="late", content_type="image/jpeg", size_bytes=1)
    data.put_event(an_event("ev-9", evidence=late))
    assert "evidence/late" not in (await client.get("/")).text


async def test_a_picture_is_shown_with_its_event(client: httpx.AsyncClient) -> None:
    assert 'src="/api/v1/evidence/pic-1?gateway=yard-b"' in (await client.get("/events/ev-2")).text


async def test_a_window_is_drawn_channel_by_channel(client: httpx.AsyncClient) -> None:
    html = (await client.get("/events/ev-3")).text
    assert html.count("<polyline") == 3
    assert "Channel 1 <strong>(the one that told)</strong>" in html


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "has not come yet"), (b"", "cannot be shown here"), (b"\x93NUMPY\x01\x00\xff\xff", "cannot be shown here")],
)
async def test_evidence_that_cannot_be_shown_is_explained(
    client: httpx.AsyncClient, data: BridgeData, content: bytes | None, says: str
) -> None:
    link = EvidenceLink(evidence_id="odd", content_type="application/x-npy", size_bytes=1)
    data.put_event(an_event("ev-9", evidence=link))
    if content is not None:
        data.put_evidence("plant-a", "odd", content)
    response = await client.get("/events/ev-9")
    assert response.status_code == 200
    assert says in response.text


async def test_the_same_id_on_two_gateways_is_two_events(client: httpx.AsyncClient, data: BridgeData) -> None:
    data.put_event(an_event("ev-1", gateway="yard-b", label="same id"))
    assert "same id" in (await client.get("/events/ev-1?gateway=yard-b")).text
    assert "same id" not in (await client.get("/events/ev-1?gateway=plant-a")).text


async def test_filters_stay_while_paging(client: httpx.AsyncClient, data: BridgeData) -> None:
    for number in range(10, 20):
        data.put_event(an_event(f"ev-{number}", label="a&b <c>"))
    first = await client.get("/events", params={"label": "a&b <c>", "limit": "4", "gateway": "", "since": ""})
    assert 'value="a&amp;b &lt;c&gt;"' in first.text
    seen = re.findall(r'<th scope="row"><a id="ev-(\d+)"', first.text)
    older = re.search(r'<a href="(/events\?[^"]*)" rel="next">', first.text)
    assert older is not None
    second = await client.get(older[1].replace("&amp;", "&"))
    seen += re.findall(r'<th scope="row"><a id="ev-(\d+)"', second.text)
    assert seen == [str(number) for number in range(13, 5, -1)]
    assert ">Newest<" in second.text


async def test_a_bad_filter_is_said_on_a_page(client: httpx.AsyncClient) -> None:
    response = await client.get("/events?since=<script>")
    assert response.status_code == 400
    assert "RFC 3339" in read(response.text).text


@pytest.mark.parametrize(
    "path", ["/?x=1", "/delivery?x=1", "/gateways/plant-a?x=1", "/events/ev-1?x=1", "/live/overview?x=1"]
)
async def test_an_unknown_parameter_is_refused(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 400
    assert "allowed here" in response.text


@pytest.mark.parametrize("path", ["/", "/events", "/events/ev-1", "/gateways/plant-a", "/delivery"])
async def test_a_store_that_cannot_be_read_is_said_on_a_page(
    client: httpx.AsyncClient, data: BridgeData, path: str
) -> None:
    data.failing = True
    response = await client.get(path)
    assert response.status_code == 503
    assert "cannot be read right now" in read(response.text).text


async def test_an_empty_bridge_has_pages_too() -> None:
    async with console_of(BridgeData()) as client:
        for path in ("/", "/events", "/delivery"):
            response = await client.get(path)
            assert response.status_code == 200
            read(response.text)


@pytest.mark.parametrize("path", ["/", "/events", "/events/ev-x", "/events/ev-y", "/gateways/plant-a", "/delivery"])
async def test_nothing_from_a_device_becomes_markup(hostile: BridgeData, path: str) -> None:
    async with console_of(hostile) as client:
        response = await client.get(path)
        assert response.status_code == 200
        read(response.text)
        assert "8484" not in response.text


def test_without_escaping_the_same_values_would_be_markup(hostile: BridgeData) -> None:
    pages = Pages()
    pages._templates.autoescape = False
    html = pages.render(
        "fragments/anomalies.html", {"events": hostile.events(), "pictures": frozenset(), "with_gateway": True}
    )
    page = Strict()
    page.feed(html)
    assert "inline script" in page.mistakes
    assert "img onerror" in page.mistakes


async def test_scripts_and_styles_come_from_here_with_their_licences(client: httpx.AsyncClient) -> None:
    html = (await client.get("/")).text
    for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', html):
        assert (await client.get(path)).status_code == 200, path
    licences = (await client.get("/static/THIRD-PARTY.txt")).text
    for name in ("htmx.min.js", "htmx-ext-sse.min.js"):
        content = (await client.get(f"/static/{name}")).content
        assert re.search(rf"{re.escape(name)} .* sha256 {hashlib.sha256(content).hexdigest()}", licences), name
    for path in ("/static/", "/static/../app.py", "/static/%2e%2e/app.py", "/static/nothing"):
        assert (await client.get(path)).status_code == 404, path


async def test_health_and_metrics_answer(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).text == "ok\n"
    response = await client.get("/metrics")
    assert response.text.startswith("# HELP")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")


def console_of(data: BridgeData) -> httpx.AsyncClient:
    """A client of a console on loopback without a token."""
    app = create_app(data, ConsoleSettings(), metrics_text)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8470")


async def test_trends_show_sums_and_go_on_to_older_ones(client: httpx.AsyncClient, data: BridgeData) -> None:
    assert "Nothing has been summed up" in (await client.get("/rollups")).text
    for number in range(60):
        data.put_rollup("plant-a", "press", f"<b>{number:02}", number + 1)
    page = (await client.get("/rollups?gateway=plant-a")).text
    assert "&lt;b&gt;59" in page
    assert "<b>59" not in page
    assert "0.25 · 0.5 · 0.75" in page
    older = page.split('href="/rollups?')[1].split('"')[0].replace("&amp;", "&")
    assert "cursor=" in older
    assert "&lt;b&gt;00" in (await client.get(f"/rollups?{older}")).text


async def test_a_store_that_was_put_aside_shows_as_a_gap_without_an_end(
    client: httpx.AsyncClient, data: BridgeData
) -> None:
    data.put_lost_store("yard-b", "00000000000000ee", "kept as outbox.db.quarantined")
    page = (await client.get("/delivery")).text
    assert "from 1 on" in page
    assert "the device put its store aside" in page
