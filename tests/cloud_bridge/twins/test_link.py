"""Twins reach the broker once each, at a pace, and again after a connect; reports are kept, then acknowledged."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from cloud_bridge.errors import StoreError
from cloud_bridge.identity.database import Database, SqliteDatabase, Transaction
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.twins.database import FLEET
from cloud_bridge.twins.desired import Change, apply_changes, one_desired
from cloud_bridge.twins.forgotten import forget_device, forgotten_devices
from cloud_bridge.twins.link import TwinLink
from cloud_bridge.twins.metrics import TwinMetrics
from cloud_bridge.twins.reported import find_reported
from gateway.wire.messages import ModelRef, Twin, decode, encode

NOW_NS = 1_790_000_000 * 10**9
SECOND_NS = 10**9
V1 = ModelRef(name="m", version="1.0.0")


@dataclass(slots=True)
class BrokerInMemory:
    """Knobs: `connected`; `takes` is how many publishes it takes before it refuses."""

    connected: bool = True
    connection: int = 1
    takes: int = 1_000_000
    waiting: list[Incoming] = field(default_factory=list)
    acknowledged: list[Incoming] = field(default_factory=list)
    published: list[tuple[str, Twin]] = field(default_factory=list)

    def check(self) -> None:
        pass

    def gather(self, messages: int, size_bytes: int, timeout_seconds: float) -> list[Incoming]:
        taken, self.waiting = self.waiting[:messages], self.waiting[messages:]
        return taken

    def acknowledge(self, messages: Sequence[Incoming]) -> int:
        self.acknowledged += messages
        return len(messages)

    def publish(self, topic: str, payload: bytes, *, retain: bool = True) -> bool:
        assert retain
        if not self.takes:
            return False
        self.takes -= 1
        self.published.append((topic, decode(payload, Twin)))
        return True

    def say(self, topic: str, payload: bytes, *, retained: bool = True) -> None:
        self.waiting.append(Incoming(topic, payload, 1, 1, 1, 0, retained))


@dataclass(slots=True)
class Breakable:
    """A database that can be taken away."""

    database: Database
    away: bool = False

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Transaction]:
        if self.away:
            raise StoreError("away")
        with self.database.transaction(durable=durable) as tx:
            yield tx

    def close(self) -> None:
        self.database.close()


class Desk:
    def __init__(self, directory: Path) -> None:
        self.broker = BrokerInMemory()
        self.database = Breakable(SqliteDatabase(directory / "fleet.db", FLEET))
        self.now_ns = NOW_NS
        self.registry = CollectorRegistry()
        self.link = TwinLink(
            self.broker,
            self.database,
            TwinMetrics(self.registry),
            root="sluice",
            twins_per_second=100.0,
            wall_ns=lambda: self.now_ns,
            monotonic_ns=lambda: self.now_ns,
        )

    def give(self, *names: str, due_ns: int = 0) -> int:
        with self.database.transaction() as tx:
            return apply_changes(tx, [Change(name, "camera", V1, due_ns) for name in names], self.now_ns)

    def turn(self, seconds: float = 1.0) -> float:
        self.now_ns += int(seconds * SECOND_NS)
        return self.link.turn()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.database.close()


def test_a_twin_is_told_once_and_again_when_it_changes(desk: Desk) -> None:
    first = desk.give("gw-1")
    for _ in range(3):
        desk.turn()
    second = desk.give("gw-1")
    desk.turn()
    topics = {topic for topic, _ in desk.broker.published}
    assert topics == {"sluice/v1/gw-1/twin/desired"}
    assert [twin.fencing_token for _, twin in desk.broker.published] == [first, second]


def test_after_a_connect_everything_is_told_again(desk: Desk) -> None:
    desk.give("gw-1", "gw-2")
    desk.turn()
    desk.broker.connected = False
    desk.turn()
    desk.broker.connected = True
    desk.turn()
    assert len(desk.broker.published) == 2, "the control: it is the same connection"
    desk.broker.connection += 1
    desk.turn()
    assert len(desk.broker.published) == 4


def test_a_connection_that_was_lost_and_made_anew_between_two_turns_is_noticed(desk: Desk) -> None:
    """As while the database is away, when turns rest: the broker may have lost what it had retained."""
    desk.give("gw-1")
    desk.turn()
    desk.broker.connection += 1
    desk.turn()
    assert len(desk.broker.published) == 2


def test_nothing_is_told_before_it_is_due(desk: Desk) -> None:
    desk.give("gw-1", due_ns=NOW_NS + 10 * SECOND_NS)
    desk.turn(9)
    assert desk.broker.published == []
    desk.turn(1)
    assert len(desk.broker.published) == 1


def test_twins_go_out_at_a_pace(desk: Desk) -> None:
    desk.give(*(f"gw-{number}" for number in range(250)))
    counts = []
    for _ in range(4):
        desk.turn()
        counts.append(len(desk.broker.published))
    assert counts == [100, 200, 250, 250]


def test_what_the_broker_did_not_take_is_told_later(desk: Desk) -> None:
    desk.give("gw-1", "gw-2")
    desk.broker.takes = 1
    desk.turn()
    desk.broker.takes = 10
    desk.turn()
    assert [topic.split("/")[2] for topic, _ in desk.broker.published] == ["gw-1", "gw-2"]


def test_a_report_is_kept_before_it_is_acknowledged(desk: Desk) -> None:
    desk.broker.say("sluice/v1/gw-1/twin/reported", encode(Twin(version=1, fencing_token=5, at="")))
    desk.database.away = True
    desk.turn()
    assert desk.broker.acknowledged == []
    desk.database.away = False
    desk.turn()
    assert len(desk.broker.acknowledged) == 1
    with desk.database.transaction() as tx:
        assert find_reported(tx)["gw-1"].twin.fencing_token == 5


def test_while_the_database_is_away_it_rests_longer_and_longer(desk: Desk) -> None:
    for number in range(200):  # as many as are held, so that nothing is waited for
        desk.broker.say(f"sluice/v1/gw-{number}/twin/reported", encode(Twin(version=1, fencing_token=5, at="")))
    assert desk.turn() == 0.0
    for _ in range(200):
        desk.broker.say("sluice/v1/gw-1/twin/reported", encode(Twin(version=1, fencing_token=6, at="")))
    desk.database.away = True
    rests = [desk.turn() for _ in range(10)]
    assert rests[0] >= 0.07
    assert sum(rests) > 10.0  # ten turns, where it was thousands in a second without a rest
    assert max(rests) <= 6.25
    desk.database.away = False
    assert desk.turn() == 0.0
    assert len(desk.broker.acknowledged) == 400


@pytest.mark.parametrize("retained", [True, False])
def test_of_a_forgotten_device_only_what_it_says_now_counts(desk: Desk, *, retained: bool) -> None:
    desk.give("gw-1")
    said = encode(Twin(version=1, fencing_token=5, at=""))
    desk.broker.say("sluice/v1/gw-1/twin/reported", said)
    desk.turn()
    with desk.database.transaction() as tx:
        forget_device(tx, "gw-1", desk.now_ns)
        assert find_reported(tx) == {}
        assert one_desired(tx, "gw-1") is None
    desk.broker.say("sluice/v1/gw-1/twin/reported", said, retained=retained)
    desk.turn()
    with desk.database.transaction() as tx:
        assert set(find_reported(tx)) == (set() if retained else {"gw-1"})
        assert forgotten_devices(tx) == ({"gw-1"} if retained else frozenset())
    assert len(desk.broker.acknowledged) == 2


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b'{"version":1,"fencing_token":-1,"at":""}', b"x" * 300_000, b"\xff"]
)
def test_what_is_no_report_is_acknowledged_counted_and_forgotten(desk: Desk, payload: bytes) -> None:
    desk.broker.say("sluice/v1/gw-1/twin/reported", payload)
    desk.broker.say("sluice/v1/gw-1/twin/desired", b"{}")
    desk.turn()
    assert len(desk.broker.acknowledged) == 2
    with desk.database.transaction() as tx:
        assert find_reported(tx) == {}


def test_a_device_with_a_higher_token_gets_its_twin_again_above_it(desk: Desk) -> None:
    desk.give("gw-1")
    desk.turn()
    ahead = NOW_NS // 10**6 + 3_600_000
    desk.broker.say("sluice/v1/gw-1/twin/reported", encode(Twin(version=9, fencing_token=ahead, at="")))
    desk.turn()
    with desk.database.transaction() as tx:
        found = one_desired(tx, "gw-1")
    assert found is not None
    assert found.token == ahead + 1
    assert desk.broker.published[-1][1].fencing_token == ahead + 1
    assert desk.registry.get_sample_value("bridge_twins_overtaken_total") == 1


@pytest.mark.parametrize(
    ("token", "refused", "code"),
    [(2**63 - 1, "", "token-beyond-belief"), (1, "token-ahead", "token-ahead")],
    ids=["an older program that has taken it", "one that has refused it"],
)
def test_a_device_that_refuses_our_twins_is_told_once_and_when_it_takes_them_again(
    desk: Desk, token: int, refused: str, code: str
) -> None:
    desk.give("gw-1")

    def say(report: Twin) -> None:
        desk.broker.say("sluice/v1/gw-1/twin/reported", encode(report))
        desk.turn()

    with capture_logs() as logs:
        for _ in range(2):
            say(Twin(version=1, fencing_token=token, at="", refused=refused))
        say(Twin(version=1, fencing_token=2, at=""))
    told = [(each["event"], each.get("code"), each["gateway"]) for each in logs]
    assert told == [("twin_refused", code, "gw-1"), ("twin_accepted_again", None, "gw-1")]
    assert desk.registry.get_sample_value("bridge_twins_refused_total") == 1


def report(token: int, refused: str = "") -> bytes:
    return encode(Twin(version=1, fencing_token=token, at="", refused=refused))


@pytest.mark.parametrize("refused", ["old-token", "old-version", "malformed", "impossible", "token-ahead"])
def test_a_twin_in_whose_place_something_else_lies_is_told_again(desk: Desk, refused: str) -> None:
    token = desk.give("gw-1", "gw-2")
    desk.turn()
    for name in ("gw-1", "gw-2"):
        desk.broker.say(f"sluice/v1/{name}/twin/reported", report(token), retained=False)
    desk.turn()
    assert len(desk.broker.published) == 2
    desk.broker.say("sluice/v1/gw-1/twin/reported", report(token, refused), retained=False)
    for _ in range(3):
        desk.turn()
    again = [(topic, twin.fencing_token) for topic, twin in desk.broker.published[2:]]
    assert again == [("sluice/v1/gw-1/twin/desired", token)]
    assert desk.registry.get_sample_value("bridge_twins_told_again_total") == 1


def test_a_device_that_goes_on_to_refuse_is_told_once_a_minute_at_most(desk: Desk) -> None:
    token = desk.give("gw-1")
    desk.turn()
    told = []
    for _ in range(40):
        desk.broker.say("sluice/v1/gw-1/twin/reported", report(token, "old-token"), retained=False)
        before = len(desk.broker.published)
        desk.turn(10)
        told += [desk.now_ns // SECOND_NS] * (len(desk.broker.published) - before)
    assert [after - before for before, after in itertools.pairwise(told)] == [60, 120]


def test_a_device_that_has_an_older_twin_without_a_word_is_told_its_own_after_a_minute(desk: Desk) -> None:
    """As one that has lost its fence, and took what somebody had recorded."""
    desk.give("gw-1")
    desk.turn()
    desk.broker.say("sluice/v1/gw-1/twin/reported", report(5), retained=False)
    desk.turn(50)
    assert len(desk.broker.published) == 1, "the report may have been on its way meanwhile"
    desk.turn(15)
    assert len(desk.broker.published) == 2


def test_a_report_that_was_on_its_way_while_the_twin_was_has_nothing_told_again(desk: Desk) -> None:
    token = desk.give("gw-1")
    desk.turn()
    for said in (5, token):
        desk.broker.say("sluice/v1/gw-1/twin/reported", report(said), retained=False)
    for _ in range(5):
        desk.turn(60)
    assert len(desk.broker.published) == 1


def test_what_was_refused_before_the_connection_is_not_told_twice(desk: Desk) -> None:
    token = desk.give("gw-1")
    desk.turn()
    desk.broker.say("sluice/v1/gw-1/twin/reported", report(token, "old-token"))
    desk.turn()
    assert len(desk.broker.published) == 1
