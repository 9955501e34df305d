"""C31: one image, two devices: the same client id, and the same store with different records from then on."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from cloud_bridge.ingest.decoding import intake_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.store import writing
from cloud_bridge.store.collisions import Sorted
from cloud_bridge.store.sqlite import SqliteStore
from gateway.outbox.schema import TABLES
from gateway.wire.batch import pack, unpack
from gateway.wire.messages import Record, RecordBatch
from hil.loopback.rig import GATEWAY_ID, eventually
from tests.chaos.appliance import Appliance, appliances
from tests.chaos.experiment import Experiment
from tests.simulators.mosquitto import Mosquitto


class Written(NamedTuple):
    """A record as a device wrote it."""

    epoch: str
    record_class: str
    seq: int
    kind: str
    body: bytes
    blob: bytes


def outbox_of(file: Path) -> set[Written]:
    """Return what stands in an outbox."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5.0)) as db:
        (epoch,) = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        return {
            Written(epoch, name, seq, kind, body, blob)
            for name, table in TABLES.items()
            for seq, kind, body, blob in db.execute(f"SELECT seq, kind, body, blob FROM {table}")
        }


def bridge_of(file: Path) -> set[Written]:
    """Return what a bridge has: as records, or as dead letters that hold a record whole."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5.0)) as db:
        found = {
            Written(epoch, name, seq, kind, body, blob or b"")
            for epoch, name, seq, kind, body, blob in db.execute(
                "SELECT epoch, class, seq, kind, body, blob FROM records"
            )
        }
        letters = db.execute("SELECT epoch, class, payload FROM dead_letters WHERE reason = 'conflict'").fetchall()
    for epoch, name, payload in letters:
        unpacked = unpack(payload)
        for record, blob in zip(unpacked.batch.records, unpacked.blobs or [b""], strict=True):
            found.add(Written(epoch, name, record.seq, record.kind, bytes(record.body), bytes(blob)))
    return found


def unnumbered(records: set[Written]) -> set[Written]:
    """Leave the numbers out: a device that takes its store for an old copy gives its records others."""
    return {record._replace(seq=0) for record in records}


def conflicts_in(file: Path) -> int:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5.0)) as db:
        (count,) = db.execute("SELECT count(*) FROM dead_letters WHERE reason = 'conflict'").fetchone()
    return int(count)


def noticed(file: Path) -> bool:
    """Tell whether the bridge has been told by a device."""
    return any(b"identity_in_conflict" in record.body for record in bridge_of(file) if record.kind == "notice")


@contextmanager
def clones(experiment: Experiment, broker: Mosquitto) -> Iterator[tuple[Appliance, Appliance]]:
    """Run one device, copy its disk, and let both run on without a network."""
    one = Appliance(experiment.directory / "one", [{"url": broker.url, "keepalive_seconds": 5}], drain_seconds=0.0)
    other = Appliance(experiment.directory / "other", [{"url": broker.url, "keepalive_seconds": 5}], drain_seconds=0.0)
    with appliances(one, other):
        one.start()
        eventually(lambda: one.produced() >= 10, "there is something to copy")
        one.rig.gateway.stop(60.0)
        shutil.copytree(one.rig.state_directory, other.rig.state_directory, dirs_exist_ok=True)
        copied = one.produced()
        for each in (one, other):
            each.start()
        for each in (one, other):
            eventually(lambda each=each: each.produced() >= copied + 15, "both go on")  # type: ignore[misc]  # at once
        yield one, other


def test_c31_two_devices_of_one_identity_lose_nothing_and_are_named_at_both_ends(experiment: Experiment) -> None:
    with ExitStack() as stack:
        broker = Mosquitto(experiment.directory)
        one, other = stack.enter_context(clones(experiment, broker))
        written = outbox_of(one.rig.outbox_file) | outbox_of(other.rig.outbox_file)
        keys = {record[:3] for record in written}
        assert len(keys) < len(written), "both wrote other records under the same numbers"
        truth = unnumbered(written)
        stack.enter_context(broker)
        one.rig.bridge_settings["brokers"] = [{"url": broker.url}]
        one.rig.write()
        one.rig.start_bridge()
        store = one.rig.directory / "bridge" / "bridge.db"
        eventually(lambda: truth <= unnumbered(bridge_of(store)), "the cloud has what both wrote", 90.0)
        experiment.log("delivered", truth=len(truth), conflicts=conflicts_in(store))
        # The second finds marks that are not its own, takes its store for an old copy and numbers its records above.
        # From then on each has met the bridge, and numbers that are taken show that there are two.
        eventually(lambda: conflicts_in(store) > 0, "they meet again", 120.0)
        eventually(lambda: any(each.logged("identity_in_conflict") for each in (one, other)), "it is told")
        told = [each for each in (one, other) if each.logged("identity_in_conflict")]
        assert told, "the gateway is told"
        eventually(lambda: told[0].metric("uplink_conflicts") > 0, "the metric says so")
        assert told[0].status()["cloud"]["dropped"]["conflicts"] > 0
        eventually(lambda: noticed(store), "the notice of it arrives", 60.0)
        assert '"reason": "conflict"' in one.rig.bridge.log.read_text()
        for each in (one, other):
            tries = each.metric("uplink_connects_total")
            assert tries <= each.status()["uptime_seconds"] + 2, f"{tries} connections: the two fight in a hot loop"
            each.is_quiet()
        assert "Traceback" not in one.rig.bridge.log.read_text()


def messages_of(records: set[Written]) -> list[Incoming]:
    """Return the batches that a device would send."""
    made = []
    for written in sorted(records):
        record = Record(
            seq=written.seq,
            kind=written.kind,
            recorded_at_ns=1,
            body=msgspec.Raw(written.body),
            blob_bytes=len(written.blob),
        )
        batch = RecordBatch(epoch=written.epoch, base=1, records=[record])
        topic = f"sluice/v1/{GATEWAY_ID}/records/{written.record_class}"
        made.append(Incoming(topic, pack(batch, [written.blob]).payload, 1, 1, 1, 0))
    return made


def test_c31_the_control_that_trusts_the_numbers_loses_what_the_second_wrote(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ("00000000000000aa", "event")
    one = {Written(*key, seq, "notice", b'{"by":"one","n":%d}' % seq, b"") for seq in range(1, 30)}
    other = {Written(*key, seq, "notice", b'{"by":"other","n":%d}' % seq, b"") for seq in range(20, 40)}
    for name, careless in (("careful", False), ("careless", True)):
        if careless:
            monkeypatch.setattr(writing, "sort_known", lambda *_: Sorted())
        file = experiment.directory / f"{name}.db"
        store = SqliteStore(file)
        for records in (one, other):
            store.ingest(intake_of(messages_of(records), root="sluice", received_at_ns=1))
        store.close()
        assert (one | other <= bridge_of(file)) == (not careless)
