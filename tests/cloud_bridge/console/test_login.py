from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from cloud_bridge.console.app import create_app
from cloud_bridge.console.login import own_path
from cloud_bridge.console.sessions import SESSION_SECONDS
from cloud_bridge.console.settings import ConsoleSettings
from tests.cloud_bridge.console.conftest import metrics_text
from tests.simulators.bridge_data import BridgeData

TOKEN = "0123456789abcdef0123456789abcdef"


class Clock:
    def __init__(self) -> None:
        self.ns = 1

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def guarded(data: BridgeData, tmp_path: Path, clock: Clock) -> AsyncIterator[httpx.AsyncClient]:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    settings = ConsoleSettings("0.0.0.0", file, ("bridge.example",))
    app = create_app(data, settings, metrics_text, monotonic_ns=clock)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://bridge.example") as client:
        yield client


async def test_the_right_token_begins_a_session_that_opens_pages_and_api(guarded: httpx.AsyncClient) -> None:
    assert (await guarded.get("/events")).status_code == 303
    response = await guarded.post("/login", data={"token": f" {TOKEN}\n", "next": "/events?limit=3"})
    assert (response.status_code, response.headers["location"]) == (303, "/events?limit=3")
    assert (await guarded.get("/events")).status_code == 200
    assert (await guarded.get("/api/v1/evidence/pic-1")).status_code == 200


async def test_the_cookie_is_closed_to_scripts_other_sites_and_plain_http(guarded: httpx.AsyncClient) -> None:
    cookie = (await guarded.post("/login", data={"token": TOKEN})).headers["set-cookie"]
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "secure", "path=/"} <= parts
    assert TOKEN not in cookie


async def test_a_form_longer_than_any_of_ours_is_refused_before_it_is_kept(guarded: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += 4096
            yield b"x" * 4096

    response = await guarded.post("/login", content=endless())
    assert response.status_code == 413
    assert sent <= 64 * 1024


async def test_over_plain_http_the_cookie_still_works(guarded: httpx.AsyncClient) -> None:
    cookie = (await guarded.post("http://bridge.example/login", data={"token": TOKEN})).headers["set-cookie"]
    assert "secure" not in cookie.lower()


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", "\x00", "<script>"])
async def test_a_wrong_token_begins_nothing(guarded: httpx.AsyncClient, token: str) -> None:
    response = await guarded.post("/login", data={"token": token})
    assert response.status_code == 403
    assert "set-cookie" not in response.headers
    assert "<script>" not in response.text.replace('<script src="/static/console.js" defer></script>', "")
    assert (await guarded.get("/events")).status_code == 303


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"&" * 8000, b"token", b"a=1&" * 100])
async def test_a_form_that_is_none_is_refused(guarded: httpx.AsyncClient, body: bytes) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert (await guarded.post("/login", content=body, headers=headers)).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
)
async def test_a_form_on_another_site_cannot_sign_anyone_in_or_out(
    guarded: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    assert (await guarded.post("/login", data={"token": TOKEN}, headers=headers)).status_code == 403
    await guarded.post("/login", data={"token": TOKEN}, headers={"sec-fetch-site": "same-origin"})
    assert (await guarded.post("/logout", headers=headers)).status_code == 403
    assert (await guarded.get("/events")).status_code == 200


async def test_signing_out_ends_the_session_for_good(guarded: httpx.AsyncClient) -> None:
    await guarded.post("/login", data={"token": TOKEN}, headers={"origin": "https://bridge.example"})
    kept = dict(guarded.cookies)
    assert (await guarded.post("/logout")).status_code == 303
    assert (await guarded.get("/events")).status_code == 303
    guarded.cookies.update(kept)
    assert (await guarded.get("/events")).status_code == 303


async def test_a_session_ends_after_its_time(guarded: httpx.AsyncClient, clock: Clock) -> None:
    await guarded.post("/login", data={"token": TOKEN})
    clock.ns += SESSION_SECONDS * 1_000_000_000
    assert (await guarded.get("/events")).status_code == 303


async def test_a_made_up_session_opens_nothing(guarded: httpx.AsyncClient) -> None:
    guarded.cookies.set("sluice_session", "x" * 43)
    assert (await guarded.get("/events")).status_code == 303


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("/events?limit=3", "/events?limit=3"),
        ("/", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/a\r\nset-cookie: x", "/"),
        ("", "/"),
        ("/" + "x" * 2000, "/"),
    ],
)
def test_the_login_leads_only_to_pages_of_the_console(wanted: str, expected: str) -> None:
    assert own_path(wanted) == expected


async def test_the_login_form_escapes_where_it_leads_to(guarded: httpx.AsyncClient) -> None:
    response = await guarded.get("/login", params={"next": '/"><b>x'})
    assert '"><b>' not in response.text


async def test_without_a_token_there_is_no_login(client: httpx.AsyncClient) -> None:
    assert (await client.get("/login")).status_code == 404
    assert "Sign out" not in (await client.get("/")).text
