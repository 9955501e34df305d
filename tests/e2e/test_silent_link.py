"""A link that goes silent: TCP is told nothing, and would wait ever longer before it tries again."""

import sys
import time
from pathlib import Path

import pytest

from gateway.uplink.sockets import UNANSWERED_SECONDS
from hil.loopback.rig import Rig, eventually
from tests.bench.echo import echo_pipeline, ticking, write_echo
from tests.bench.link import NamespaceLink, namespaces_work

pytestmark = [
    pytest.mark.slow,
    pytest.mark.net,
    pytest.mark.skipif(not namespaces_work(), reason="needs root, and the tools ip and nft, for a network namespace"),
]

PATIENT = """
import gateway.uplink.sockets as sockets
sockets.UNANSWERED_SECONDS = 900.0
from gateway.cli import main
main()
"""
"""The gateway with the protection off."""


def seconds_until_noticed(folder: Path, at_most: float, *, patient: bool) -> float | None:
    """Return how long the gateway calls a silent link connected; None if all the time."""
    rig = Rig(
        folder / "rig",
        {"ticks": ticking(folder, 20.0)},
        {"ticks": echo_pipeline("ticks")},
        gateway={"models": {"directories": [str(write_echo(folder / "models"))]}, "local": {"broker": None}},
    )
    with rig, NamespaceLink(rig.ports.broker) as link:
        with (rig.directory / "broker.conf").open("a") as file:
            file.write(f"listener {link.port} {link.host}\n")
        rig.gateway_settings["cloud"]["brokers"] = [{"url": f"mqtt://{link.host}:{link.port}", "allow_plaintext": True}]
        rig.write()
        if patient:
            rig.gateway.command = [sys.executable, "-c", PATIENT, *rig.gateway.command[3:]]
        rig.gateway.command = link.command(rig.gateway.command)
        rig.start()

        def connected() -> bool:
            status = rig.gateway_status()
            return bool(status and status["cloud"]["state"] == "connected")

        eventually(connected, "the gateway is connected")
        link.cut()
        began = time.monotonic()
        while time.monotonic() - began < at_most:
            if not connected():
                return time.monotonic() - began
            time.sleep(0.1)
    return None


def test_a_silent_link_is_given_up_soon(tmp_path: Path) -> None:
    seconds = seconds_until_noticed(tmp_path, 20.0, patient=False)
    assert seconds is not None
    # The kernel looks when it sends again, which it does at the limit; our own thread looks once a second.
    assert UNANSWERED_SECONDS - 1 <= seconds <= UNANSWERED_SECONDS + 4


def test_without_the_limit_a_silent_link_stays_connected(tmp_path: Path) -> None:
    assert seconds_until_noticed(tmp_path, UNANSWERED_SECONDS + 5, patient=True) is None
