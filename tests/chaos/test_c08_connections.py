"""C8: connections that are reset, never answered, half open; paths that swallow large packets."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.config import Broker
from gateway.uplink.backoff import Backoff
from gateway.uplink.exchange import ConnectOptions, Ending, Terms
from gateway.uplink.link import MqttClient
from tests.chaos.experiment import Experiment
from tests.chaos.footprint import POOL_THREADS, SPARE, Footprint
from tests.chaos.namespaces import Network
from tests.chaos.netrig import NetRig
from tests.chaos.network import black_holed_mtu, counted, no_new_connections, partition, resets, small_mtu
from tests.chaos.stand import Options
from tests.chaos.tcpproxy import TcpProxy
from tests.chaos.timing import pause
from tests.simulators.mosquitto import Mosquitto

KEEPALIVE_SECONDS = 5
LONGEST_BACKOFF_SECONDS = 30.0


def test_c08_a_storm_of_resets_is_met_with_patience_and_loses_nothing(experiment: Experiment, network: Network) -> None:
    seconds = experiment.seconds(6.0, 1 / 60)
    with NetRig(experiment, network, Options(rate=500.0, keepalive_seconds=KEEPALIVE_SECONDS)) as stand:
        stand.start()
        stand.flows()
        stand.remember()
        with counted(network, "device", "tcp flags & (syn | ack) == syn", "from") as tries:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                with resets(network, "device"):
                    pause(0.1)
                pause(0.4)
            made = tries()
        first = stand.flows(1, LONGEST_BACKOFF_SECONDS + 10.0)
        experiment.log("storm", seconds=seconds, connection_attempts=made, first_progress_seconds=first)
        # The first tries follow quickly; then less than one a second.
        assert made <= seconds + 5
        assert stand.logged("producer", "mqtt_not_connected")
        stand.settle(least=500)


def test_c08_connections_that_are_never_answered_are_given_up_and_tried_again(
    experiment: Experiment, network: Network
) -> None:
    with NetRig(experiment, network, Options(rate=500.0, keepalive_seconds=KEEPALIVE_SECONDS)) as stand:
        stand.start()
        stand.remember()
        with no_new_connections(network, "device"):
            with resets(network, "device"):
                stand.until(lambda: stand.told()["link"] != "connected", "the connection is lost")
            pause(experiment.seconds(5.0, 1 / 60))
            assert stand.told()["link"] != "connected"
        first = stand.flows(1)
        experiment.log("healed", first_progress_seconds=first)
        assert first <= 2 * 5.0 + 5.0  # two connection time-outs at worst, and the way there
        stand.settle(least=500)


def test_c08_a_half_open_connection_is_noticed_within_one_and_a_half_keepalives(
    experiment: Experiment, network: Network
) -> None:
    with NetRig(experiment, network, Options(rate=200.0, keepalive_seconds=KEEPALIVE_SECONDS)) as stand:
        stand.start()
        stand.flows()
        stand.drained()  # idle: nothing but pings would tell
        stand.remember()
        with partition(network, "device"):
            seconds = stand.until(lambda: stand.told()["link"] != "connected", "the producer has noticed")
        experiment.log("noticed", seconds=seconds)
        assert seconds <= 1.5 * KEEPALIVE_SECONDS + 4.0  # to wake up on a busy machine
        stand.ask("resume")
        stand.flows(1)
        stand.settle(least=50)


def test_c08_small_packets_carry_everything(experiment: Experiment, network: Network) -> None:
    with NetRig(experiment, network, Options(rate=500.0, burst=3000)) as stand:
        stand.start()
        stand.remember()
        with small_mtu(network, "device", 576):
            stand.ask("burst")
            stand.flows(3000)
        stand.settle(least=3000)


@pytest.mark.parametrize("probing", ["with-probing", "without-probing"])
def test_c08_a_path_that_swallows_large_packets_loses_nothing(
    experiment: Experiment, network: Network, probing: str
) -> None:
    options = Options(rate=200.0, burst=1000, keepalive_seconds=KEEPALIVE_SECONDS)
    with NetRig(experiment, network, options) as stand:
        # Without this setting of the kernel (the image makes it) TCP cannot get a full packet through such a path.
        if probing == "with-probing":
            network.set("device", {"tcp_mtu_probing": "1"})
        stand.start()
        stand.flows()
        stand.remember()
        with black_holed_mtu(network, "device", 1300):
            stand.ask("burst")
            if probing == "with-probing":
                stand.flows(1000)
            else:
                pause(2.0)
                assert int(stand.told()["waiting"]) > 0, "large packets came through: the injector has no effect"
        stand.flows(1)
        stand.settle(least=1000)


async def test_c08_reconnecting_again_and_again_leaves_no_thread_and_no_descriptor(
    experiment: Experiment, tmp_path: Path
) -> None:
    reconnects = experiment.scaled(60, 1000)
    with Mosquitto(tmp_path) as broker:
        before, after = await reconnect(reconnects, broker.port)
    experiment.log("reconnected", count=reconnects, before=before, after=after)
    assert after.fds <= before.fds + SPARE
    assert after.threads <= before.threads + SPARE + POOL_THREADS


async def test_c08_control_a_client_that_leaves_its_threads_behind_is_caught(
    experiment: Experiment, tmp_path: Path
) -> None:
    with Mosquitto(tmp_path) as broker, threads_left_behind() as leaked:
        before, after = await reconnect(60, broker.port, leak=leaked)
    experiment.log("leaked", before=before, after=after)
    assert after.threads > before.threads + SPARE + POOL_THREADS


class Watcher:
    """The owner of a client: knows how often it was connected."""

    def __init__(self) -> None:
        self.ups = 0
        self.up = asyncio.Event()
        self.reasons: set[str] = set()

    def link_up(self, terms: Terms) -> None:
        """Told by the client."""
        self.ups += 1
        self.up.set()

    def link_down(self, ending: Ending) -> None:
        """Told by the client."""
        self.up.clear()
        self.reasons.add(ending.reason)

    def parting(self) -> None:
        """Told by the client."""


async def reconnect(count: int, port: int, leak: list[threading.Event] | None = None) -> tuple[Footprint, Footprint]:
    """Have a client reconnect so often, half of the times after a reset; return what the process took and takes."""
    watcher = Watcher()
    at_once = Backoff(base_seconds=0.001, unreachable_cap_seconds=0.001, cap_seconds=0.001)
    async with TcpProxy(port) as proxy:
        broker = Broker(url=f"mqtt://127.0.0.1:{proxy.port}")
        client = MqttClient([broker], ConnectOptions(client_id="c08"), watcher, backoff=at_once)
        async with asyncio.TaskGroup() as group, asyncio.timeout(60 + count):
            task = group.create_task(client.run())
            await watcher.up.wait()
            before = Footprint.of(os.getpid())
            for turn in range(count):
                ups = watcher.ups
                if turn % 2:
                    client.reconnect("for the experiment")
                else:
                    proxy.reset()
                while watcher.ups == ups:
                    await asyncio.sleep(0.002)
                if leak is not None:
                    leak.append(stuck_thread())
            after = await _settled(before)
            task.cancel()
    return before, after


async def _settled(before: Footprint) -> Footprint:
    """Look again until what comes and goes has gone, a few seconds at most."""
    for _ in range(50):
        now = Footprint.of(os.getpid())
        if now.threads <= before.threads + SPARE and now.fds <= before.fds + SPARE:
            break
        await asyncio.sleep(0.05)
    return now


@contextmanager
def threads_left_behind() -> Iterator[list[threading.Event]]:
    """Give a list for threads that stay; they end with the block."""
    events: list[threading.Event] = []
    try:
        yield events
    finally:
        for event in events:
            event.set()


def stuck_thread() -> threading.Event:
    """Start a thread that waits for ever, as one does whose connection was forgotten."""
    event = threading.Event()
    threading.Thread(target=event.wait, name="left-behind", daemon=True).start()
    return event
