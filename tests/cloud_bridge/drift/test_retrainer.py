"""Training in a process of its own: what it is told, and what comes of each of its ends."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_bridge.config import Broker, Config, Drift, Identity, Registry, Store
from cloud_bridge.configload import load
from cloud_bridge.drift import book
from cloud_bridge.drift.book import Proposal
from cloud_bridge.drift.retrainer import Retrainer
from cloud_bridge.drift.schema import DRIFT
from cloud_bridge.identity.database import SqliteDatabase


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    opened = SqliteDatabase(tmp_path / "drift.db", DRIFT)
    yield opened
    opened.close()


def configured(place: Path) -> Config:
    return Config(
        brokers=[Broker(url="mqtt://127.0.0.1:1883")],
        store=Store(url=f"sqlite:///{place}/bridge.db"),
        identity=Identity(trust_domain="example", directory=place / "identity"),
        registry=Registry(url=str(place / "registry"), keys=place / "keys"),
        drift=Drift(retrain="canary", releases=[place / "releases"]),
    )


def proposed(database: SqliteDatabase, model: str = "m") -> Proposal:
    with database.transaction() as tx:
        made = book.propose(tx, model, "1.0.0", "why", 1)
    assert made is not None
    return made


def outcome(database: SqliteDatabase) -> tuple[str, str]:
    with database.transaction() as tx:
        (one,) = book.proposals(tx)
    return one.state, one.detail


def retrainer(database: SqliteDatabase, place: Path, program: str, limit_seconds: float = 60.0) -> Retrainer:
    script = place / "child.py"
    script.write_text(program)
    command = (sys.executable, str(script))
    return Retrainer(configured(place), database, command=command, limit_seconds=limit_seconds)


def test_the_child_gets_the_same_configuration_and_a_name_is_never_an_option(
    database: SqliteDatabase, tmp_path: Path
) -> None:
    program = (
        "import sys, shutil, json\n"
        f"shutil.copy(sys.argv[4], {str(tmp_path / 'seen.yaml')!r})\n"
        f"json.dump(sys.argv[1:], open({str(tmp_path / 'words.json')!r}, 'w'))\n"
        "print('m 1.0.1 is a candidate')\n"
    )
    retrainer(database, tmp_path, program).retrain(proposed(database, "--help"), threading.Event())
    assert outcome(database) == ("done", "m 1.0.1 is a candidate")
    assert load(tmp_path / "seen.yaml") == configured(tmp_path)
    words = (tmp_path / "words.json").read_text()
    assert words.endswith('"--", "--help"]')


def test_a_refusal_is_written_down_with_its_reason(database: SqliteDatabase, tmp_path: Path) -> None:
    program = "import sys\nprint('error: 3 healthy windows', file=sys.stderr)\nsys.exit(1)\n"
    retrainer(database, tmp_path, program).retrain(proposed(database), threading.Event())
    assert outcome(database) == ("failed", "error: 3 healthy windows")


def test_a_training_without_end_is_ended(database: SqliteDatabase, tmp_path: Path) -> None:
    program = "import time\ntime.sleep(600)\n"
    retrainer(database, tmp_path, program, limit_seconds=0.1).retrain(proposed(database), threading.Event())
    state, detail = outcome(database)
    assert state == "failed"
    assert "longer than 0.1 s" in detail


def test_what_another_bridge_works_on_is_left_to_it_until_it_must_be_dead(
    database: SqliteDatabase, tmp_path: Path
) -> None:
    proposal = proposed(database)
    with database.transaction() as tx:
        assert book.claim(tx, proposal.id, 1000, 0)
        assert not book.claim(tx, proposal.id, 1001, 999)
    worker = retrainer(database, tmp_path, "print('done')\n")
    assert outcome(database)[0] == "running"
    worker.retrain(proposal, threading.Event())
    assert outcome(database) == ("done", "done"), "long ago: that bridge was killed"


def test_a_bridge_that_stops_leaves_the_proposal_for_the_next(database: SqliteDatabase, tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    program = "import time\ntime.sleep(600)\n"
    retrainer(database, tmp_path, program).retrain(proposed(database), stopping)
    assert outcome(database) == ("open", "")
