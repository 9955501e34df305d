import ssl

import pytest
from structlog.testing import capture_logs

from gateway.config import Broker
from gateway.errors import ConfigError
from gateway.uplink.backoff import Backoff
from gateway.uplink.candidates import STABLE_SECONDS, SUSPICIOUS_LIVES, Candidates
from gateway.uplink.endpoint import distrust
from gateway.uplink.exchange import Ending

AWAY = Ending("unreachable", "Connection refused")


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def candidates(*urls: str, draw: float = 1.0) -> Candidates:
    brokers = [Broker(url=url, allow_plaintext=True) for url in urls or ("mqtt://127.0.0.1:1",)]
    return Candidates(brokers, Backoff(), monotonic=Clock().monotonic, draw=lambda: draw)


def test_without_a_broker_there_is_nothing_to_connect_to() -> None:
    with pytest.raises(ConfigError, match="no broker"):
        Candidates([], Backoff(), monotonic=Clock().monotonic, draw=lambda: 1.0)


def test_each_failure_in_a_row_moves_the_next_try_further_away() -> None:
    all_of_them = candidates()
    waits = []
    for _ in range(4):
        all_of_them.settle(all_of_them.first, AWAY, "me")
        waits.append(all_of_them.first.not_before - Clock.now)
    assert waits == sorted(waits)
    assert waits[0] < waits[-1]
    all_of_them.first.forgive()
    all_of_them.settle(all_of_them.first, AWAY, "me")
    assert all_of_them.first.not_before - Clock.now == waits[0]


def test_why_a_broker_is_away_is_logged_once_for_each_reason() -> None:
    all_of_them = candidates()
    with capture_logs() as logs:
        for ending in (AWAY, AWAY, Ending("refused", "not authorised"), Ending("refused", "not authorised"), AWAY):
            all_of_them.settle(all_of_them.first, ending, "me")
    assert [line["reason"] for line in logs] == ["Connection refused", "not authorised", "Connection refused"]


def test_a_reason_that_says_what_time_it_is_here_is_not_logged_at_each_try() -> None:
    all_of_them = candidates()
    with capture_logs() as logs:
        for at_ns in (1_800_000_000_000_000_000, 1_800_000_060_000_000_000):
            error = ssl.SSLCertVerificationError()
            error.verify_code, error.verify_message = 10, "certificate has expired"
            all_of_them.settle(all_of_them.first, Ending("refused", distrust(error, at_ns)), "me")
    (line,) = logs
    assert "the clock here says 2027-01-15T08:00:00.000Z" in line["reason"]


def test_a_broker_that_ends_connections_again_and_again_without_a_reason_is_suspected_of_a_second_client() -> None:
    all_of_them = candidates()
    for _ in range(SUSPICIOUS_LIVES):
        all_of_them.first.lived(STABLE_SECONDS / 2)
    ending = all_of_them.settle(all_of_them.first, Ending("busy", "connection closed"), "gw-1")
    assert "does another client use the id 'gw-1'?" in ending.reason
    all_of_them.first.lived(STABLE_SECONDS)
    assert all_of_them.settle(all_of_them.first, AWAY, "gw-1").reason == AWAY.reason


def test_a_new_certificate_lets_only_those_be_tried_at_once_that_are_shown_it() -> None:
    brokers = [Broker(url="mqtts://127.0.0.1:1", identity=True), Broker(url="mqtt://127.0.0.1:2", allow_plaintext=True)]
    all_of_them = Candidates(brokers, Backoff(), monotonic=Clock().monotonic, draw=lambda: 1.0)
    for candidate in all_of_them:
        all_of_them.settle(candidate, AWAY, "me")
    all_of_them.certificate_came()
    assert [candidate.not_before > 0 for candidate in all_of_them] == [False, True]


def test_one_without_a_bridge_comes_behind_the_others_longer_each_time() -> None:
    all_of_them = candidates("mqtt://127.0.0.1:1", "mqtt://127.0.0.1:2", "mqtt://127.0.0.1:3")
    first, second, third = all_of_them
    assert all_of_them.to_try([first, second, third], Clock.now) is first
    all_of_them.pass_over(first, 300.0)
    assert all_of_them.to_try([first, second, third], Clock.now) is second
    assert all_of_them.to_try([first], Clock.now) is first, "better than none"
    all_of_them.pass_over(second, 600.0)
    assert all_of_them.to_try([first, second, third], Clock.now) is third
    assert all_of_them.to_try([first, second], Clock.now) is first, "the one whose time is over first"
    all_of_them.pass_over(first, 300.0)
    assert first.no_return_before == Clock.now + 600.0
    first.heard()
    assert all_of_them.to_try([first, second, third], Clock.now) is first
