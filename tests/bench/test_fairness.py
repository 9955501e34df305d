"""The parts of the benchmarks that decide what is fair and what is counted."""

import random
import socket
import threading
import time
from itertools import pairwise

import pytest

from tests.bench.link import ProxyLink
from tests.bench.peers.readings import Arrivals, fate, number_of, payload_of
from tests.bench.peers.script import HOW_OFTEN, LENGTH_SECONDS, PAUSE_SECONDS, plan
from tests.bench.recovery import CUT_SECONDS, cut_lengths
from tests.bench.table import markdown, missed, row


def test_the_same_seed_draws_the_same_faults_and_another_draws_others() -> None:
    assert plan(1) == plan(1)
    assert plan(1) != plan(2)


def test_every_fault_is_drawn_as_often_as_it_should_be_and_none_begins_before_the_last_is_over() -> None:
    faults = plan(5)
    assert {kind: sum(fault.kind == kind for fault in faults) for kind in HOW_OFTEN} == HOW_OFTEN
    assert all(LENGTH_SECONDS[0] <= fault.seconds <= LENGTH_SECONDS[1] for fault in faults)
    assert all(later.at - (sooner.at + sooner.seconds) >= PAUSE_SECONDS[0] - 0.02 for sooner, later in pairwise(faults))


def test_cuts_are_of_all_lengths_whatever_the_seed() -> None:
    for seed in range(20):
        lengths = sorted(cut_lengths(random.Random(seed), 24))
        assert CUT_SECONDS[0] <= lengths[0] < 1.2
        assert 26 < lengths[-1] <= CUT_SECONDS[1]
        assert all(later / sooner < 1.4 for sooner, later in pairwise(lengths))


def test_a_lost_reading_is_counted_by_when_it_was_lost() -> None:
    accepted = {1: 1.0, 2: 9.5, 3: 10.5, 4: 11.0, 5: 12.0, 6: 15.0, 7: 10.01}
    arrived = {5, 7}  # 7 was with the gateway before the kill, and answered for after it
    counted = fate(accepted, arrived, [], [(10.0, 11.2)])
    assert (counted.accepted, counted.lost, counted.doubles) == (7, 5, 0)
    assert counted.lost_while_down == 2  # 3 and 4: after the kill, before the first that came through again
    assert counted.lost_in_hand == 1  # 2: half a second before the kill
    assert counted.lost_otherwise == 2  # 1 and 6


def test_nothing_lost_is_counted_as_nothing_lost() -> None:
    counted = fate({1: 1.0, 2: 2.0}, {1, 2}, [], [(1.2, 1.5)])
    assert counted.lost == counted.lost_while_down == counted.lost_in_hand == counted.lost_otherwise == 0


def test_a_reading_that_arrives_again_is_counted_by_whether_a_kill_lies_between_its_copies() -> None:
    arrivals = Arrivals()
    arrivals.add([1, 2, 3], [9.9, 9.8, 5.0])
    arrivals.add([1, 3, 2, 1], [11.5, 5.1, 12.0, 11.6])
    assert sorted(arrivals.repeats()) == [(5.0, 5.1), (9.8, 12.0), (9.9, 11.5), (11.5, 11.6)]
    counted = fate(dict.fromkeys((1, 2, 3), 1.0), arrivals.first(), arrivals.repeats(), [(10.0, 11.2)])
    assert (counted.doubles, counted.doubles_over_kill) == (4, 2)


def test_readings_of_which_only_the_arrival_is_known_count_from_there() -> None:
    arrivals = Arrivals()
    for _ in range(2):
        arrivals.add([1])
    (pair,) = arrivals.repeats()
    assert pair[0] <= pair[1] <= time.monotonic()


def test_a_reading_can_be_told_from_its_payload() -> None:
    assert number_of(payload_of(16_777_216)) == 16_777_216


def test_the_table_says_what_was_missed() -> None:
    results = {
        "machine": {"cores": 2},
        "one": {"rows": [row("speed", "5/s", aim="≥ 4/s", met=True), row("loss", "3", aim="0", met=False)]},
        "two": {"skipped": "no clip"},
    }
    lines = markdown(results).splitlines()
    assert lines[2] == "| speed | `one` | ≥ 4/s | 5/s, met |"
    assert lines[3] == "| loss | `one` | 0 | 3, **missed** |"
    assert "no clip" in lines[4]
    assert missed(results) == ["one: loss: 3, aim 0"]


@pytest.fixture
def echo_port() -> int:
    """Serve a port of loopback that answers with what it is sent."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        try:
            while data := connection.recv(1024):
                connection.sendall(data)
        except OSError:
            return

    threading.Thread(target=serve, daemon=True).start()
    port: int = server.getsockname()[1]
    return port


def test_a_cut_proxy_is_silent_and_a_healed_one_resets_what_was_open(echo_port: int) -> None:
    with ProxyLink(echo_port) as link, socket.create_connection((link.host, link.port), timeout=5) as old:
        old.sendall(b"a")
        assert old.recv(1) == b"a"
        link.cut()
        old.sendall(b"b")
        old.settimeout(0.5)
        with pytest.raises(TimeoutError):
            old.recv(1)
        began = time.monotonic()
        link.heal()
        old.settimeout(5)
        with pytest.raises(ConnectionResetError):
            old.recv(1)
        assert time.monotonic() - began < 5
        with socket.create_connection((link.host, link.port), timeout=5) as new:
            new.sendall(b"c")
            assert new.recv(1) == b"c"
