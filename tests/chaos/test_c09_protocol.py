"""C9: brokers that refuse, lie, stall and talk nonsense, over the whole gateway process.

Each case of the table has a scripted broker and a gateway of its own; those of one group run beside each other. The
broker plays the bridge as well, so what is committed is known here and nowhere else.
"""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hil.loopback.rig import GATEWAY_ID
from hil.loopback.tally import outbox_counts
from tests.chaos.appliance import CALM_GROWTH_BYTES, Appliance, appliances
from tests.chaos.experiment import Experiment
from tests.gateway.uplink.waiting import until
from tests.simulators import scripted_broker as wire
from tests.simulators.authority import Authority
from tests.simulators.scripted_broker import PUBACK, Script, ScriptedBroker, packet, publish_packet

MOST_TRIES_A_SECOND = 1.0
TLS_ALERT = bytes([21, 3, 3, 0, 2, 2, 40])
"""handshake_failure, fatal (RFC 8446 §6), in the clear where only encrypted records may come."""
HUGE = bytes([0x32, 0xFF, 0xFF, 0xFF, 0x7F])
"""The header of a PUBLISH of 256 MB."""

Shown = Callable[[Appliance], object]


def link(state: str, *words: str) -> Shown:
    """Return whether the status says that of the connection."""

    def look(gateway: Appliance) -> bool:
        cloud = gateway.status().get("cloud") or {}
        return cloud.get("state") == state and all(word in cloud["reason"].lower() for word in words)

    return look


def metric(name: str, least: float = 1.0, **labels: str) -> Shown:
    """Return whether a metric says so."""
    return lambda gateway: gateway.metric(name, **labels) >= least


def degraded(gateway: Appliance) -> bool:
    """Return whether the status says that the cloud does not acknowledge."""
    return gateway.status().get("partition") == "degraded"


@dataclass(frozen=True)
class Case:
    """One misbehaviour: the script while it lasts, and what must be seen of it outside."""

    name: str
    script: dict[str, Any] = field(default_factory=dict)
    shown: Shown | None = None  # None: the contract allows it, and nothing is to be seen
    raw: bytes = b""  # sent in the middle of everything
    flows: bool = False  # records arrive all the same
    secure: bool = False  # `raw` goes past the encryption


def connack(code: int, state: str, *words: str) -> Case:
    return Case(f"connack-{code:02x}", {"connack": code}, link(state, *words))


def puback(code: int) -> Case:
    return Case(f"puback-{code:02x}", {"puback": code}, metric("uplink_publish_errors_total"))


def disconnect(code: int, state: str, *words: str) -> Case:
    reference = [(wire.SERVER_REFERENCE, "elsewhere.example:8883")] if code in (0x9C, 0x9D) else []
    return Case(f"disconnect-{code:02x}", {"disconnect_after_publishes": (0, code, reference)}, link(state, *words))


REFUSALS = [
    connack(0x87, "refused", "not authorized"),
    connack(0x97, "waiting", "quota"),
    connack(0x84, "refused", "protocol"),
    connack(0x9D, "refused", "moved"),
    disconnect(0x8E, "refused", "taken over"),
    disconnect(0x9C, "refused", "elsewhere.example", "not followed"),
]
MORE_REFUSALS = [
    *(
        connack(code, "refused")
        for code in (0x80, 0x81, 0x82, 0x83, 0x85, 0x86, 0x8A, 0x8C, 0x90, 0x95, 0x99, 0x9A, 0x9B)
    ),
    *(connack(code, "waiting") for code in (0x88, 0x89, 0x9F)),
    disconnect(0x8B, "waiting", "shutting down"),
    disconnect(0x93, "waiting", "receive maximum"),
    disconnect(0x97, "waiting", "quota"),
    disconnect(0x9D, "refused", "not followed"),
]
ANSWERS = [
    puback(0x87),
    puback(0x97),
    puback(0x99),
    Case("puback-10", {"puback": 0x10, "withhold_acks": True}, metric("uplink_publish_errors_total")),
    Case(
        "puback-withheld",
        {"withhold_pubacks": True, "withhold_acks": True},
        lambda g: len(g.logged("mqtt_not_connected")),
    ),
    Case("acks-withheld", {"withhold_acks": True}, degraded),
]
MORE_ANSWERS = [puback(0x80), puback(0x83)]
TERMS = [
    Case("unknown-mids", {"puback_unknown_mids": True}, flows=True),
    Case("receive-maximum-1", {"connack_properties": [(wire.RECEIVE_MAXIMUM, 1)]}, flows=True),
    Case(
        "maximum-packet-1-kb",
        {"connack_properties": [(wire.MAXIMUM_PACKET, 1024)]},
        metric("uplink_withheld_total", reason="too-large"),
        flows=True,
    ),
    Case("assigned-client-id", {"connack_properties": [(wire.ASSIGNED_CLIENT_ID, "you-are-17")]}, flows=True),
    Case("server-keep-alive", {"connack_properties": [(wire.SERVER_KEEP_ALIVE, 1)]}, flows=True),
    Case("session-lost", {"close_after_publishes": 3}, metric("uplink_connects_total", 2)),
]
STREAM = [
    Case(
        "alias-without-mapping",
        {},
        metric("uplink_dropped_messages_total", reason="bad-topic"),
        raw=publish_packet(5, b"", b"x", properties=[(wire.TOPIC_ALIAS, 9)]),
        flows=True,
    ),
    Case("half-open", {"silent": True}, link("waiting")),
    Case("half-packet", {"half_packet_after_publishes": 1}, lambda g: len(g.logged("mqtt_not_connected"))),
    Case("256-megabytes", {}, lambda g: len(g.logged("mqtt_not_connected")), raw=HUGE + bytes(4096), flows=True),
    Case("answer-to-nothing", {}, raw=packet(PUBACK, 0, b"\x7f\x01"), flows=True),
    Case("garbage", {}, lambda g: len(g.logged("mqtt_not_connected")), raw=b"\xf7\x9f\x00\x11" * 50, flows=True),
    Case("tls-alert", {}, lambda g: len(g.logged("mqtt_not_connected")), raw=TLS_ALERT, flows=True, secure=True),
]


def chosen(experiment: Experiment, short: list[Case], more: list[Case]) -> list[list[Case]]:
    """Return the cases in groups that two cores can carry."""
    cases = [*short, *(more if experiment.long else ())]
    return [cases[at : at + 7] for at in range(0, len(cases), 7)]


@pytest.mark.parametrize(
    ("short", "more"),
    [(REFUSALS, MORE_REFUSALS), (ANSWERS, MORE_ANSWERS), (TERMS, []), (STREAM, [])],
    ids=["refusals", "answers", "terms", "stream"],
)
async def test_c09_a_misbehaving_broker_is_told_survived_and_not_stormed(
    experiment: Experiment, short: list[Case], more: list[Case]
) -> None:
    for cases in chosen(experiment, short, more):
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            for case in cases:
                context = server_context(experiment.directory) if case.secure else None
                broker = await stack.enter_async_context(ScriptedBroker(Script(is_bridge=True), tls=context))
                group.create_task(suffer(experiment, case, broker))


def server_context(directory: Path) -> ssl.SSLContext:
    """Make the TLS side of a broker; the CA is `ca/site.pem`."""
    Authority(directory / "ca", "site").issue(directory / "server.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    return context


async def suffer(experiment: Experiment, case: Case, broker: ScriptedBroker) -> None:
    """Take one gateway through one misbehaviour and out of it again."""
    login = {"url": broker.url, "keepalive_seconds": 5}
    if case.secure:
        login["ca_file"] = str(experiment.directory / "ca" / "site.pem")
    gateway = Appliance(experiment.directory / case.name, [login])
    set_script(broker, case.script)
    with appliances(gateway):
        await asyncio.to_thread(gateway.start)
        loop = asyncio.get_running_loop()
        began, tried = loop.time(), len(broker.connects)
        if case.raw:
            await until(lambda: broker.published, 20.0, f"{case.name}: something is published")
            (broker.send_below_tls if case.secure else broker.send_raw)(case.raw)
        if case.shown is not None:
            await shows(gateway, case)
        await until(lambda: gateway.produced() >= 20, 30.0, f"{case.name}: the edge goes on")
        before = gateway.footprint()
        seconds = max(loop.time() - began, 5.0)
        tries = len(broker.connects) - tried
        experiment.log("suffered", case=case.name, tries=tries, seconds=seconds, status=gateway.status().get("cloud"))
        assert tries <= 1 + MOST_TRIES_A_SECOND * seconds, f"{case.name}: {tries} tries in {seconds:.0f} s"
        if case.flows:
            goal = gateway.produced()
            await until(lambda: len(broker.rows) >= goal, 30.0, f"{case.name}: records arrive")
        _, produced, waiting = outbox_counts(gateway.rig.outbox_file)
        assert produced - waiting <= len(broker.rows), f"{case.name}: rows went that nobody has"
        set_script(broker, {})
        await until(lambda: drained(gateway, broker), 90.0, f"{case.name}: all arrives when it is over")
        assert gateway.footprint().rss_bytes <= before.rss_bytes + CALM_GROWTH_BYTES
        await asyncio.to_thread(gateway.rig.gateway.stop, 60.0)
        complete(gateway, broker, case.name)
        gateway.is_quiet()


def set_script(broker: ScriptedBroker, knobs: dict[str, Any]) -> None:
    """Let the broker behave like this from now on."""
    broker.script = Script(is_bridge=True, **knobs)


async def shows(gateway: Appliance, case: Case) -> None:
    """Wait until the fault can be seen from outside."""
    shown = case.shown
    assert shown is not None
    end = asyncio.get_running_loop().time() + 40.0
    while not await asyncio.to_thread(shown, gateway):
        assert asyncio.get_running_loop().time() < end, f"{case.name} is not shown: {gateway.status()}"
        await asyncio.sleep(0.2)


def drained(gateway: Appliance, broker: ScriptedBroker) -> bool:
    """Tell whether what was produced so far has arrived."""
    return len(broker.rows) >= gateway.produced() - 3 and gateway.waiting() < 50


def complete(gateway: Appliance, broker: ScriptedBroker, what: str) -> None:
    """Check that every number is there once, in order, and that nothing is left behind."""
    epoch, produced, waiting = outbox_counts(gateway.rig.outbox_file)
    assert waiting == 0, f"{what}: {waiting} left"
    assert {key[:2] for key in broker.rows} == {(GATEWAY_ID, epoch)}
    assert len(broker.rows) == produced, f"{what}: {len(broker.rows)} of {produced} arrived"
    for name, order in broker.order.items():
        assert order == list(range(1, len(order) + 1)), f"{what}: class {name} out of order"


async def control(
    directory: Path, carelessness: str, knobs: dict[str, Any], seconds: float
) -> tuple[Appliance, ScriptedBroker]:
    """Run a careless gateway against a broker for a while, then against a good one."""
    async with ScriptedBroker(Script(is_bridge=True, **knobs)) as broker:
        module = ("tests.simulators.careless_gateway", carelessness)
        gateway = Appliance(directory, [{"url": broker.url}], module=module)
        with appliances(gateway):
            await asyncio.to_thread(gateway.start)
            await until(lambda: gateway.produced() >= 15, 30.0)
            await asyncio.sleep(seconds)
            set_script(broker, {})
            await until(lambda: gateway.produced() >= 30, 30.0)
            await asyncio.to_thread(gateway.rig.gateway.stop, 60.0)
    return gateway, broker


async def test_c09_the_control_that_believes_a_puback_loses_records(experiment: Experiment) -> None:
    gateway, broker = await control(
        experiment.directory / "control", "believes-pubacks", {"lose_next_batches": 10}, 0.0
    )
    with pytest.raises(AssertionError, match="arrived"):
        complete(gateway, broker, "the control")


async def test_c09_the_control_that_asks_at_once_is_caught_storming(experiment: Experiment) -> None:
    _, broker = await control(experiment.directory / "control", "asks-at-once", {"connack": 0x87}, 2.0)
    seconds = broker.connect_times[-1] - broker.connect_times[0]
    assert len(broker.connect_times) > 1 + MOST_TRIES_A_SECOND * seconds
