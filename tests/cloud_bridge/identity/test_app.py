"""The HTTP side: limits, and answers that are always of the contract."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloud_bridge.errors import StoreError
from cloud_bridge.identity.limits import RateLimit, side_of
from gateway.wire.identity import MAX_BODY_BYTES, PATH_ATTEST, PATH_CHALLENGE, PATH_ENROL, PATH_TRUST, Refusal
from gateway.wire.messages import decode
from tests.cloud_bridge.identity.kit import Desk, desk_at

POSTS = (PATH_ENROL, PATH_CHALLENGE, PATH_ATTEST)
ASK = b'{"gateway":"dock-7"}'


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body", [b"", b"null", b"{", b"[" * 60_000, b'{"gateway":"Dock 7"}', b'{"gateway":"x\\n"}', b"\xff"]
)
def test_what_is_no_request_is_malformed(desk: Desk, path: str, body: bytes) -> None:
    answer = desk.request("POST", path, body)
    assert answer.status_code == 400
    assert decode(answer.content, Refusal).code == "malformed"


@pytest.mark.parametrize("path", POSTS)
def test_a_body_beyond_the_limit_is_not_read(desk: Desk, path: str) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 16_384
            yield bytes(16_384)
            await asyncio.sleep(0)

    answer = desk.request("POST", path, endless())
    assert (answer.status_code, decode(answer.content, Refusal).code) == (413, "too-large")
    assert desk.request("POST", path, bytes(MAX_BODY_BYTES)).status_code == 400


def test_other_paths_and_methods_are_not_there(desk: Desk) -> None:
    assert desk.request("GET", "/").status_code == 404
    assert desk.request("GET", PATH_ENROL).status_code == 405
    assert desk.request("POST", PATH_TRUST, b"{}").status_code == 405


def test_answers_are_not_to_be_cached(desk: Desk) -> None:
    assert desk.request("GET", PATH_TRUST).headers["cache-control"] == "no-store"


def test_who_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    with desk_at(tmp_path, requests_per_minute=6) as desk:
        codes = [desk.request("GET", PATH_TRUST).status_code for _ in range(7)]
        assert codes == [200] * 6 + [429]
        answer = desk.request("GET", PATH_TRUST)
        assert float(answer.headers["retry-after"]) == 10
        desk.clock.pass_seconds(10)
        assert desk.request("GET", PATH_TRUST).status_code == 200


def test_asking_under_one_name_is_limited_by_itself_and_does_not_keep_others_out(tmp_path: Path) -> None:
    with desk_at(tmp_path, requests_per_gateway_per_minute=3) as desk:
        codes = [desk.request("POST", PATH_CHALLENGE, ASK).status_code for _ in range(4)]
        assert codes == [404, 404, 404, 429]
        assert desk.request("POST", PATH_CHALLENGE, b'{"gateway":"dock-8"}').status_code == 404


def test_control_without_a_limit_by_name_one_name_takes_the_turns_of_all(tmp_path: Path) -> None:
    """Then only the side counts, and devices behind one address share it."""
    with desk_at(tmp_path, requests_per_minute=4) as desk:
        codes = [desk.request("POST", PATH_CHALLENGE, ASK).status_code for _ in range(4)]
        assert codes == [404, 404, 404, 404]
        assert desk.request("POST", PATH_CHALLENGE, b'{"gateway":"dock-8"}').status_code == 429


def test_a_limit_forgets_the_keys_longest_unused_and_never_grows_without_end() -> None:
    limit = RateLimit(60)
    for number in range(50_000):
        assert limit.wait_seconds(str(number), 0.0) == 0.0
    assert len(limit._buckets) == 20_000


def test_a_side_is_an_address_or_the_network_of_an_ipv6_host() -> None:
    assert side_of("192.0.2.7") == side_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert side_of("2001:db8:1:2:aaaa::1") == side_of("2001:db8:1:2:bbbb::2") == "2001:db8:1:2::/64"
    assert side_of("2001:db8:1:3::1") != side_of("2001:db8:1:2::1")
    assert side_of("testclient") == "testclient"


def test_a_database_that_is_away_makes_an_answer_not_an_accident(desk: Desk) -> None:
    device = desk.enrolled()

    class Away:
        def transaction(self, *, durable: bool = True) -> object:
            raise StoreError("it is away")

    working = desk.service._database
    desk.service._database = Away()  # type: ignore[assignment]
    answer = desk.request("POST", PATH_CHALLENGE, ASK)
    assert answer.status_code == 503
    refusal = decode(answer.content, Refusal)
    assert (refusal.code, refusal.retry_after_seconds) == ("unavailable", 15.0)
    assert "away" not in refusal.message
    desk.service._database = working
    device.renew()
