"""A device that speaks a later version: what the bridge cannot read waits in the cloud, and nothing waits behind it."""

import json
import subprocess
import sys
from typing import Any

from hil.loopback.rig import Rig, eventually
from hil.loopback.tally import tally_of
from tests.e2e.conftest import Site
from tests.e2e.flow import goes_on, logged, status_of, waits

SPOILT = "3, 4, 5, 8"
"""Batches of class `measure` with one of these numbers are in a form that today's bridge does not know."""

LATER_GATEWAY = f"""
from gateway.uplink import packing
from gateway.wire.batch import Packed
pack = packing.pack
def later(batch, blobs=(), **options):
    packed = pack(batch, blobs, **options)
    numbers = {{record.seq for record in batch.records if record.kind == "measure"}}
    return Packed(b"Z" + packed.payload, packed.content_type) if numbers & {{{SPOILT}}} else packed
packing.pack = later
from gateway.cli import main
main()
"""

LATER_BRIDGE = """
from cloud_bridge.ingest import decoding
unpack = decoding.unpack
decoding.unpack = lambda payload: unpack(payload.removeprefix(b"Z"))
from cloud_bridge.cli import main
main()
"""

SILENT_BRIDGE = """
from cloud_bridge.ingest.worker import Worker
Worker._take_custody = lambda *_: None
from cloud_bridge.cli import main
main()
"""
"""The bridge that keeps a dead letter and does not say so."""


def later_site(site: Site) -> Rig:
    rig = site(gateway={"cloud": {"ack_timeout_seconds": 1.0, "batch_records": 4}})
    rig.gateway.command = [sys.executable, "-c", LATER_GATEWAY, *rig.gateway.command[3:]]
    return rig


def letters(rig: Rig, *words: str, program: str = "") -> list[dict[str, Any]]:
    python = [sys.executable, "-c", program] if program else rig.bridge.command[:3]
    command = [*python, "deadletters", *words, "--json", "--config", str(rig.bridge_file)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return [json.loads(line) for line in shown.stdout.split("\n") if line]


def depth(rig: Rig) -> int:
    return int(status_of(rig)["outbox"]["classes"]["measure"]["depth"])


def test_what_the_bridge_cannot_read_is_in_its_custody_and_replayed_once(site: Site) -> None:
    rig = later_site(site)
    rig.start()
    waits(rig, 80)
    goes_on(rig, "motor", 20)
    assert rig.gateway.stop() == 0
    assert rig.last_run()["drained"], "nothing waits on the device"
    assert logged(rig, "records_kept_unread")
    assert logged(rig, "records_read_again")
    before = tally_of(rig)
    assert before.waiting == 0
    assert before.duplicates == 0
    assert before.lost >= len(SPOILT.split(","))  # they are in dead letters
    kept = letters(rig, "list")
    assert {(letter["reason"], letter["only_copy"]) for letter in kept} == {("bad-payload", True)}
    rig.bridge.stop()
    told = letters(rig, "replay", "--all", program=LATER_BRIDGE)
    assert all(one["settled"] for one in told)
    after = tally_of(rig)
    assert (after.lost, after.duplicates, after.evicted) == (0, 0, 0)
    assert after.committed == after.enqueued > 0
    assert letters(rig, "replay", "--all", program=LATER_BRIDGE) == []


def test_the_control_without_the_word_of_the_bridge_the_class_waits(site: Site) -> None:
    rig = later_site(site)
    rig.bridge.command = [sys.executable, "-c", SILENT_BRIDGE, *rig.bridge.command[3:]]
    rig.start()
    waits(rig, 80)
    eventually(lambda: letters(rig, "list") != [], "the bridge keeps it as a dead letter")
    held = depth(rig)
    goes_on(rig, "motor", 20)
    eventually(lambda: depth(rig) > held, "rows of the class gather")
    assert not logged(rig, "records_kept_unread")
