"""Fencing tokens only rise: over a clock that is set back, over a database that is put back, over both."""

import shutil
from pathlib import Path

from cloud_bridge.identity.database import Database, SqliteDatabase, Transaction
from cloud_bridge.twins.database import FLEET
from cloud_bridge.twins.desired import (
    Change,
    apply_changes,
    due_tokens,
    find_desired,
    next_token,
    one_desired,
    overtake,
    set_features,
)
from cloud_bridge.twins.reported import put_report
from gateway.wire import tokens
from gateway.wire.messages import Assignment, ModelRef, Twin, encode
from tests.simulators.ota_device import OtaDevice

NOW_NS = 1_790_000_000 * 10**9
MS_NS = 10**6
V1, V2 = ModelRef(name="m", version="1.0.0"), ModelRef(name="m", version="2.0.0")


def give(tx: Transaction, model: ModelRef | None, now_ns: int = NOW_NS, pipeline: str = "camera") -> int:
    return apply_changes(tx, [Change("gw", pipeline, model, now_ns)], now_ns)


def test_a_token_is_higher_than_all_before_even_when_the_clock_is_set_back(database: Database) -> None:
    with database.transaction() as tx:
        given = [next_token(tx, NOW_NS), next_token(tx, NOW_NS), next_token(tx, NOW_NS - 3600 * 10**9)]
        given.append(next_token(tx, NOW_NS + 10**9))
        given.append(next_token(tx, NOW_NS, above=given[-1] + 5))
    assert given == sorted(set(given))
    assert given[0] == NOW_NS // MS_NS


def test_a_transaction_that_is_rolled_back_gives_out_nothing(database: Database) -> None:
    class Stop(Exception):
        pass

    try:
        with database.transaction() as tx:
            give(tx, V1)
            raise Stop
    except Stop:
        pass
    with database.transaction() as tx:
        assert find_desired(tx) == {}


def test_a_change_leaves_other_pipelines_and_features_alone(database: Database) -> None:
    with database.transaction() as tx:
        give(tx, V1, pipeline="motor")
        set_features(tx, ["gw"], {"snapshots": True, "zoom": False}, NOW_NS)
        give(tx, V2)
        set_features(tx, ["gw"], {"zoom": None}, NOW_NS)
        give(tx, None, pipeline="motor")
        found = one_desired(tx, "gw")
    assert found is not None
    assert found.version == 5
    assert (found.model_of("camera"), found.model_of("motor")) == (V2, None)
    assert found.message.features == {"snapshots": True}


def test_a_twin_is_told_when_it_is_due(database: Database) -> None:
    with database.transaction() as tx:
        token = apply_changes(tx, [Change("gw", "camera", V1, NOW_NS + 10)], NOW_NS)
        assert due_tokens(tx, NOW_NS) == {}
        assert due_tokens(tx, NOW_NS + 10) == {"gw": token}


def test_a_database_put_back_from_an_older_copy_still_gives_out_higher_tokens(tmp_path: Path) -> None:
    file, copy = tmp_path / "fleet.db", tmp_path / "copy.db"
    device = OtaDevice("gw", "camera", V1)
    database = SqliteDatabase(file, FLEET)
    with database.transaction() as tx:
        give(tx, V1)
    database.close()
    shutil.copy(file, copy)
    database = SqliteDatabase(file, FLEET)
    with database.transaction() as tx:
        for minute in range(5):
            give(tx, V2, NOW_NS + minute * 60 * 10**9)
            device.take(encode(find_desired(tx)["gw"].message))
    database.close()
    shutil.copy(copy, file)
    database = SqliteDatabase(file, FLEET)
    with database.transaction() as tx:
        give(tx, V1, NOW_NS + 600 * 10**9)
        device.take(encode(find_desired(tx)["gw"].message))
    database.close()
    assert (device.refused, device.model) == (0, V1)


def test_with_a_clock_set_back_too_the_device_says_so_and_is_overtaken(database: Database) -> None:
    device = OtaDevice("gw", "camera", V1)
    with database.transaction() as tx:
        give(tx, V2, NOW_NS + 3600 * 10**9)
        device.take(encode(find_desired(tx)["gw"].message))
        assert device.model == V2
        # As in the older copy, with a clock an hour behind.
        tx.change("UPDATE fleet_facts SET value = 1")
        tx.change("UPDATE fleet_desired SET token = 1, version = 1")
        give(tx, V1)
        device.take(encode(find_desired(tx)["gw"].message))
        assert (device.refused, device.model) == (1, V2)
        assert overtake(tx, "gw", device.book.fencing_token, NOW_NS) is not None
        device.take(encode(find_desired(tx)["gw"].message))
    assert (device.refused, device.model) == (1, V1)


def test_a_device_without_a_fence_would_take_an_old_twin_that_is_published_again() -> None:
    """The control: without the token, whoever has kept an old twin can bring an old release back."""
    fenced = OtaDevice("gw", "camera", V1)
    careless = OtaDevice("gw", "camera", V1, believes_any_token=True)
    old = encode(Twin(version=1, fencing_token=5, at="", assignments=[Assignment(pipeline="camera", model=V1)]))
    new = encode(Twin(version=2, fencing_token=6, at="", assignments=[Assignment(pipeline="camera", model=V2)]))
    for device in (fenced, careless):
        device.take(old)
        device.take(new)
        device.take(old)
    assert (fenced.model, careless.model) == (V2, V1)


def test_a_token_beyond_belief_uses_up_nothing(database: Database) -> None:
    with database.transaction() as tx:
        give(tx, V1)
        assert overtake(tx, "gw", tokens.of_report_ms(NOW_NS) + 1, NOW_NS) is None
        assert next_token(tx, NOW_NS) < NOW_NS // MS_NS + 100


def test_what_a_device_has_just_believed_is_overtaken_there_and_not_for_the_fleet(database: Database) -> None:
    believed = tokens.of_twin_ms(NOW_NS + 3600 * 10**9)  # its clock is an hour ahead
    with database.transaction() as tx:
        give(tx, V1)
        token = overtake(tx, "gw", believed, NOW_NS)
        assert token == believed + 1
        assert next_token(tx, NOW_NS) < NOW_NS // MS_NS + 100
    taken = OtaDevice("gw", "camera", V1)
    taken.take(encode(Twin(version=1, fencing_token=token, at="")))
    assert taken.book.fencing_token == token


def test_what_raises_the_tokens_of_the_fleet_is_believed_by_every_device(database: Database) -> None:
    """Else one device could shut off all others."""
    with database.transaction() as tx:
        give(tx, V1)
        token = overtake(tx, "gw", tokens.of_fleet_ms(NOW_NS), NOW_NS)
        assert token is not None
        assert next_token(tx, NOW_NS) == token + 1
    assert token + 1 < tokens.of_twin_ms(NOW_NS - 3600 * 10**9)  # one whose clock is an hour behind


def test_a_clock_that_was_decades_ahead_once_shuts_no_device_off(database: Database) -> None:
    ahead_ns = NOW_NS + 20 * 366 * 86_400 * 10**9
    most = tokens.of_twin_ms(NOW_NS)  # that a device believes
    with database.transaction() as tx:
        assert give(tx, V1, ahead_ns) > most, "the control: it believes none of these"
        assert due_tokens(tx, NOW_NS) == {}, "and none is told before its time"
        again = overtake(tx, "gw", 5, NOW_NS)  # whatever it reports once the clock is right
        assert again is not None
        assert 5 < again < NOW_NS // MS_NS + 100
        assert due_tokens(tx, NOW_NS) == {"gw": again}
        assert overtake(tx, "gw", 5, NOW_NS) is None, "once is enough"
        give(tx, V1, ahead_ns)
        assert again < give(tx, V2, NOW_NS + 10 * MS_NS) < NOW_NS // MS_NS + 100
        assert overtake(tx, "gw", 5, NOW_NS) is None


def test_a_clock_that_was_never_set_takes_no_token_for_one_of_such_a_clock(database: Database) -> None:
    with database.transaction() as tx:
        given = give(tx, V1)
        assert give(tx, V2, 0) == given + 1
        assert overtake(tx, "gw", given + 5, 0) == given + 6
        assert next_token(tx, 0) == given + 7


def test_a_device_with_no_twin_of_ours_is_left_alone(database: Database) -> None:
    with database.transaction() as tx:
        assert overtake(tx, "stranger", 2**52, NOW_NS) is None


def due_of(tx: Transaction, *, taken: bool) -> int:
    """Give one pipeline something now, and another one in an hour; return when the twin is told."""
    token = give(tx, V1, pipeline="camera")
    if taken:
        put_report(tx, "gw", b"{}", Twin(version=1, fencing_token=token, at=""), NOW_NS)
    apply_changes(tx, [Change("gw", "motor", V2, NOW_NS + 3600 * 10**9)], NOW_NS)
    known = one_desired(tx, "gw")
    assert known is not None
    assert known.model_of("camera") == V1
    return known.due_ns - NOW_NS


def test_what_must_be_told_now_does_not_wait_for_what_another_pipeline_gets_later(database: Database) -> None:
    with database.transaction() as tx:
        assert due_of(tx, taken=False) == 0


def test_once_the_device_has_taken_it_the_other_is_told_in_its_time(database: Database) -> None:
    """The control: the hour counts where nothing is outstanding."""
    with database.transaction() as tx:
        assert due_of(tx, taken=True) == 3600 * 10**9
