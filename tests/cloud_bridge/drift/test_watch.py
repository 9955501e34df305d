"""The watch over a store, on both databases."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_bridge.config import Drift
from cloud_bridge.drift import book
from cloud_bridge.drift.evaluation import Known, evaluate, reference_of
from cloud_bridge.drift.schema import DRIFT
from cloud_bridge.drift.slices import Device, Statistics, joined, statistics_of_measure
from cloud_bridge.drift.statistics import merged
from cloud_bridge.drift.watch import window_of
from cloud_bridge.errors import StoreError
from cloud_bridge.identity.database import Database, PostgresDatabase, SqliteDatabase
from cloud_bridge.store.base import RecordFilter, Store
from gateway.wire.histogram import Histogram
from gateway.wire.manifest import Artefact, Baseline, Classification, ImageInput, ModelManifest
from gateway.wire.messages import ModelRef
from tests.cloud_bridge.drift.conftest import START_NS, Bench
from tests.simulators.measuring_device import SECOND, Outlet, ScoringDevice
from tests.simulators.postgres import PostgresServer

APART = 15.0
HOUR = 240  # scores
_names = itertools.count()


def step(bench: Bench, pairs: list[tuple[ScoringDevice, Outlet]], scores: int) -> None:
    """Let devices answer, and look."""
    for device, outlet in pairs:
        outlet.put(device.run(scores, APART))
        bench.now_ns = device.now_ns
    bench.watch().look()


def fleet(store: Store, count: int) -> list[tuple[ScoringDevice, Outlet]]:
    return [(ScoringDevice(f"gw{at}", at, START_NS), Outlet(store, f"gw{at}")) for at in range(count)]


def release_with_baseline(place: Path, baseline: Baseline) -> None:
    artefact = Artefact(target="cpu-int8", file="m.tflite", sha256="0" * 64, size_bytes=1)
    manifest = ModelManifest(
        name="person",
        version="1.0.0",
        artefacts=(artefact,),
        input=ImageInput(height=1, width=1),
        output=Classification(labels=("person",)),
        baseline=baseline,
    )
    directory = place / "person" / "1.0.0"
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_bytes(msgspec.json.encode(manifest))


def test_the_first_whole_window_is_what_a_device_is_held_against(
    make_bench: Callable[..., Bench], store: Store
) -> None:
    bench = make_bench()
    (pair,) = fleet(store, 1)
    step(bench, [pair], HOUR // 2)
    assert bench.findings() == {}
    for _ in range(4):
        step(bench, [pair], HOUR // 4)
    with bench.database.transaction() as tx:
        (reference,) = book.references(tx).values()
    assert reference.origin == "first-window"
    step(bench, [pair], HOUR // 4)
    assert bench.findings()["gw0/camera", "score", "shape"].standing.level == "ok"


def held_against(bench: Bench) -> set[str]:
    """Which gateways have a reference in the database, whether they are read or not."""
    with bench.database.transaction() as tx:
        rows = tx.rows("SELECT gateway, version FROM drift_references")
    return {gateway if version != "0.9.0" else f"{gateway} {version}" for gateway, version in rows}


def test_what_silent_devices_are_held_against_is_not_read_and_kept_until_another_release_runs_there(
    make_bench: Callable[..., Bench], store: Store
) -> None:
    bench = make_bench()
    (pair,) = fleet(store, 1)
    for _ in range(6):
        step(bench, [pair], HOUR // 4)
    gone = Device("person", "0.9.0", "gone", "camera")
    with bench.database.transaction() as tx:
        (known,) = book.references(tx).values()
        older = known.device._replace(version="0.9.0")
        book.put_reference(tx, book.Reference(older, bench.now_ns, "first-window", known.statistics, known.effective))
        book.put_reference(tx, book.Reference(gone, bench.now_ns, "operator", known.statistics, known.effective))
        assert [device.gateway for device in book.references(tx)] == ["gw0"]
    bench.now_ns = pair[0].now_ns = pair[0].now_ns + 364 * 86_400 * SECOND
    step(bench, [pair], HOUR // 4)
    assert held_against(bench) == {"gw0", "gw0 0.9.0", "gone 0.9.0"}, "who was switched off goes on where it was"
    bench.now_ns = pair[0].now_ns = pair[0].now_ns + 2 * 86_400 * SECOND
    step(bench, [pair], HOUR // 4)
    assert held_against(bench) == {"gw0", "gone 0.9.0"}, "who speaks keeps one, who is silent too; who runs another not"


def test_an_alarm_is_told_once_proposes_once_and_ends(make_bench: Callable[..., Bench], store: Store) -> None:
    bench = make_bench()
    (pair,) = fleet(store, 1)
    for _ in range(8):
        step(bench, [pair], HOUR // 4)
    pair[0].shift = 1.5
    for _ in range(8):
        step(bench, [pair], HOUR // 4)
    assert bench.findings()["gw0/camera", "score", "shape"].standing.level == "alarm"
    assert [event.kind for event in bench.events()].count("alarm") == 1
    assert len(bench.proposals()) == 1
    pair[0].shift = 0.0
    for _ in range(8):
        step(bench, [pair], HOUR // 4)
    assert bench.findings()["gw0/camera", "score", "shape"].standing.level == "ok"
    assert bench.events()[-1].kind == "ok"


def test_with_never_nothing_is_proposed_and_with_canary_it_is_trained(
    make_bench: Callable[..., Bench], store: Store
) -> None:
    never, canary = make_bench(retrain="never"), make_bench(retrain="canary")
    (pair,) = fleet(store, 1)
    for at in range(16):
        pair[0].shift = 0.0 if at < 8 else 1.5
        pair[1].put(pair[0].run(HOUR // 4, APART))
        for bench in (never, canary):
            bench.now_ns = pair[0].now_ns
            watch = bench.watch()
            watch.look()
            watch.act()
    assert any(one.standing.level == "alarm" for one in never.findings().values())
    assert never.proposals() == []
    assert [one.model for one in canary.retrained][:1] == ["person"]


def test_every_measure_is_taken_once_whoever_looks_and_however_often_it_starts(
    make_bench: Callable[..., Bench], store: Store
) -> None:
    bench = make_bench()
    (pair,) = fleet(store, 1)
    measures = pair[0].run(HOUR, APART)
    pair[1].put(measures)
    bench.now_ns = pair[0].now_ns
    for _ in range(3):
        bench.watch().look()
    with bench.database.transaction() as tx:
        ((_, slices),) = list(book.devices_since(tx, 0))
    counted = joined([statistics for _, statistics in slices])["score"]
    assert sum(counted.counts) == sum(measure.inferences for measure in measures)


def test_a_store_that_was_put_back_from_an_older_copy_is_counted_on_from_where_it_is(
    make_bench: Callable[..., Bench], store: Store
) -> None:
    bench = make_bench()
    (pair,) = fleet(store, 1)
    pair[1].put(pair[0].run(HOUR, APART))
    with bench.database.transaction() as tx:
        assert book.move_cursor(tx, 0, 10**9)
    bench.now_ns = pair[0].now_ns
    bench.watch().look()
    bench.now_ns += 10 * SECOND
    pair[1].put(pair[0].run(HOUR // 4, APART))
    bench.now_ns = pair[0].now_ns
    bench.watch().look()
    with bench.database.transaction() as tx:
        ((_, slices),) = list(book.devices_since(tx, 0))
    assert sum(map(len, slices)) > 0


def test_what_was_accepted_is_no_drift_any_more(make_bench: Callable[..., Bench], store: Store) -> None:
    bench = make_bench()
    (pair,) = fleet(store, 1)
    for at in range(16):
        pair[0].shift = 0.0 if at < 8 else 1.5
        step(bench, [pair], HOUR // 4)
    key = ("gw0/camera", "score", "shape")
    assert bench.findings()[key].standing.level == "alarm"
    with bench.database.transaction() as tx:
        for device, slices in book.devices_since(tx, window_of(bench.settings, bench.now_ns).since_s):
            blocks = [statistics for _, statistics in slices]
            book.put_reference(tx, reference_of(device, blocks, 1, bench.now_ns, "operator"))
    for _ in range(3):
        step(bench, [pair], HOUR // 4)
    assert bench.findings()[key].standing.level == "ok"


def test_cohorts_are_held_against_the_baseline_of_the_release(
    make_bench: Callable[..., Bench], store: Store, tmp_path: Path
) -> None:
    """Half of the devices, those at one site, answer otherwise than the release did in training."""
    trained = joined([statistics_of_measure(one) for one in ScoringDevice("lab", 99, START_NS).run(4000, APART)])
    release_with_baseline(tmp_path / "releases", Baseline(score=trained["score"], samples=4000))
    bench = make_bench(min_samples=100)
    bench.releases = [tmp_path / "releases"]
    pairs = fleet(store, 12)
    bench.labels = {f"gw{at}": {"site": "south" if at < 6 else "north"} for at in range(12)}
    for at, (device, _) in enumerate(pairs):
        device.shift = 1.2 if at < 6 else 0.0
    for _ in range(3):
        step(bench, pairs, HOUR // 3)
    found = {subject: one.standing.level for (subject, _, _), one in bench.findings().items() if "=" in subject}
    assert found == {"site=south": "alarm", "site=north": "ok"}


def test_two_devices_make_no_cohort(make_bench: Callable[..., Bench], store: Store) -> None:
    bench = make_bench()
    for _ in range(3):
        step(bench, fleet(store, 2), HOUR // 3)
    assert not any(subject == "all" for subject, _, _ in bench.findings())


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("memory", "allowed", "sigmas"), [(0.0, 0, 1.0), (0.9, 9, 3.0)])
def test_no_alarm_in_a_thousand_windows_without_drift(memory: float, allowed: int, sigmas: float) -> None:
    """At the stated significance of 1 % a look, on scores that remember too; each is held against the one before.

    The control is the last assertion: every fiftieth window is moved, and is an alarm. Of scores that remember, 240 are
    worth about a dozen, which cannot tell one sigma from chance; so those are moved further.
    """
    settings = Drift(window_hours=1.0)
    source = ScoringDevice("gw", 5, START_NS, memory=memory)
    device = Device("person", "1.0.0", "gw", "camera")
    alarms = caught = moved = 0
    reference = None
    for at in range(1000):
        source.shift = sigmas if at % 50 == 49 else 0.0
        slices: list[tuple[int, Statistics]] = [
            (START_NS // SECOND + 150 * part, joined([statistics_of_measure(one) for one in source.run(12, APART)]))
            for part in range(24)
        ]
        if reference is not None:
            known = Known(lambda _n, _v: None, {device: reference}, {}, lambda _g: {})
            window = window_of(settings, START_NS + 3600 * SECOND)
            (finding,) = evaluate([(device, slices)], known, settings, window, START_NS).findings
            is_alarm = finding.standing.proposed == "alarm"
            moved += at % 50 == 49
            caught += is_alarm and at % 50 == 49
            alarms += is_alarm and at % 50 != 49
        if at % 50 != 49:
            reference = reference_of(device, [statistics for _, statistics in slices], 1, START_NS, "first-window")
    assert alarms <= allowed
    assert moved == 20
    assert caught >= 18


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return SqliteDatabase(tmp_path / "book.db", DRIFT)
    server: PostgresServer = request.getfixturevalue("postgres")
    return PostgresDatabase(server.make(f"drift{next(_names)}"), schema=DRIFT)


def test_the_book_keeps_what_was_written_on_both_databases(database: Database) -> None:
    device = Device("m", "1.0.0", "gw", "p")
    with database.transaction() as tx:
        assert book.begin_look(tx, 1000, 100)
        assert not book.begin_look(tx, 1001, 100), "another bridge has just looked"
        assert book.begin_look(tx, 999, 100), "a clock that was set back must not stop it for ever"
        assert book.move_cursor(tx, 0, 5)
        assert not book.move_cursor(tx, 0, 7), "another bridge was first"
        assert book.cursor(tx) == 5
        first = book.propose(tx, "m", "1.0.0", "why", 1)
        assert first is not None
        assert book.propose(tx, "m", "1.0.0", "again", 2) is None
        assert book.settle(tx, first.id, "done", "", 3)
        assert book.propose(tx, "m", "1.0.0", "again", 4) is not None
        book.put_label(tx, "gw", "e1", "normal", 1)
        book.put_label(tx, "gw", "e1", "bearing", 2)
        assert book.labels(tx) == {("gw", "e1"): "bearing"}
        book.note(tx, device, "accepted", "x", 5)
        (event,) = book.events(tx)
        assert (event.subject, event.kind) == ("gw/p", "accepted")
        assert book.drop_events(tx, 6) == 1
    database.close()


POISON: list[dict[str, Any]] = [
    {"scores": Histogram(edges=(0.5,), counts=(2**63 - 1, 2**63 - 1))},
    {"scores": Histogram(edges=(0.5,), counts=(2**48, 2**48))},
    {"model": ModelRef(name="a\0b", version="1.0.0")},
    {"model": ModelRef(name="m" * 3000, version="1.0.0")},
    {"model": ModelRef(name="m", version="1\0")},
    {"inputs": {"rms\0": Histogram(edges=(0.5,), counts=(1, 1))}},
    {"inputs": {"x" * 600: Histogram(edges=(0.5,), counts=(1, 1))}},
    {"inputs": {"rms": Histogram(edges=tuple(range(2000)), counts=(1,) * 2001)}},
    {"inputs": {f"i{at}": Histogram(edges=(0.5,), counts=(1, 1)) for at in range(1000)}},
]


def test_one_device_cannot_stop_the_watch_over_the_others(database: Database, store: Store) -> None:
    bench = Bench(store, database, Drift(window_hours=1.0, every_seconds=1.0))
    good, evil = fleet(store, 2)
    for _ in range(4):
        ours = evil[0].run(len(POISON), APART)
        (first,) = ours[:1]
        evil[1].put([msgspec.structs.replace(first, **poison) for poison in POISON])
        good[1].put(good[0].run(HOUR // 2, APART))
        bench.now_ns = good[0].now_ns
        bench.watch().look()
    assert bench.findings()["gw0/camera", "score", "shape"].standing.level == "ok"
    with database.transaction() as tx:
        assert book.cursor(tx) == bench.store.records(RecordFilter(kind="measure"), limit=1)[0].id


def test_a_slice_that_cannot_be_read_any_more_is_passed_over(database: Database, store: Store) -> None:
    bench = Bench(store, database, Drift(window_hours=1.0, every_seconds=1.0))
    (pair,) = fleet(store, 1)
    for _ in range(5):
        step(bench, [pair], HOUR // 2)
    broken = f'{{"score":{{"edges":[0.5],"counts":[{2**63},0]}}}}'
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(broken, type=dict[str, Histogram])  # how it was read before
    with database.transaction() as tx:
        tx.change("UPDATE drift_slices SET statistics = ? WHERE start_s > ?", (broken, START_NS // SECOND + 3600))
        tx.change("UPDATE drift_references SET statistics = ?", (f'{{"statistics":{broken},"effective":{{}}}}',))
    for _ in range(5):
        step(bench, [pair], HOUR // 2)
    with database.transaction() as tx:
        (reference,) = book.references(tx).values()
    assert reference.statistics
    assert bench.findings()["gw0/camera", "score", "shape"].standing.level == "ok"


def test_a_sum_stays_within_what_can_be_read_again() -> None:
    full = Histogram(edges=(0.5,), counts=(2**63 - 1, 0))
    sums = joined([{"score": full}] * 5)["score"]
    assert msgspec.json.decode(msgspec.json.encode(sums), type=Histogram) == sums
    far = [Histogram(edges=tuple(range(at * 500, at * 500 + 500)), counts=(0, *[1] * 499, 0)) for at in range(10)]
    assert merged(far[:2]) is not None
    assert merged(far) is None


def test_a_file_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "book.db", DRIFT)
    with database.transaction() as tx:
        tx.change("INSERT INTO drift_schema (version) VALUES (99)")
    database.close()
    with pytest.raises(StoreError, match="newer version"), database.transaction():
        pass


def test_a_slice_is_added_to_and_what_cannot_be_added_up_is_left_out(tmp_path: Path) -> None:
    one = Histogram(edges=(1.0, 2.0), counts=(0, 3, 0))
    other = Histogram(edges=(5.0,), counts=(1, 1))
    assert joined([{"rms": one}, {"rms": one}]) == {"rms": Histogram(edges=(1.0, 2.0), counts=(0, 6, 0))}
    assert joined([{"x": Histogram(edges=(1.5,), counts=(1, 1))}, {"x": other}]) == {}
