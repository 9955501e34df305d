"""The command line: what is found, what people say, and what would be trained."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloud_bridge.cli import main
from cloud_bridge.drift import book
from cloud_bridge.drift.book import Finding, FindingKey
from cloud_bridge.drift.judging import Standing
from cloud_bridge.drift.schema import DRIFT, FILE_NAME
from cloud_bridge.drift.statistics import Comparison
from cloud_bridge.identity.database import SqliteDatabase
from cloud_bridge.store.sqlite import SqliteStore
from tests.cloud_bridge.training.field import FieldGateway, npy, vibration_windows
from tests.simulators.measuring_device import SECOND, Outlet, ScoringDevice

FOUND = Comparison(psi=0.41, ks=0.33, p_value=1e-6, outside=0.3, outside_p_value=1e-9, samples=1234, effective=500.0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store with an hour of one device, an hour ago."""
    with_store = SqliteStore(tmp_path / "bridge.db")
    device = ScoringDevice("gw", 1, time.time_ns() - 3600 * SECOND)
    Outlet(with_store, "gw").put(device.run(236, 15.0))
    with_store.close()
    return tmp_path


def run(place: Path, *words: str) -> Result:
    return CliRunner().invoke(main, [*words[:2], "--store", f"sqlite:///{place}/bridge.db", *words[2:]])


def lines(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.split("\n") if line]


def write_findings(place: Path) -> str:
    database = SqliteDatabase(place / FILE_NAME, DRIFT)
    try:
        with database.transaction() as tx:
            for subject, level in (("gw/camera", "alarm"), ("other/camera", "ok")):
                key = FindingKey("person", "1.0.0", "device", subject, "score", "shape")
                book.put_findings(tx, [Finding(key, Standing(level, 5, level, 0, 1), 5, FOUND)])  # type: ignore[arg-type]
            book.note(tx, key, "alarm", "score moved", 5)
            proposal = book.propose(tx, "person", "1.0.0", "gw/camera", 5)
            assert proposal is not None
            return proposal.id
    finally:
        database.close()


def test_a_bridge_that_has_not_looked_yet_says_so(place: Path) -> None:
    result = run(place, "drift", "status")
    assert result.exit_code == 0
    assert "nothing compared yet" in result.stdout
    assert lines(run(place, "drift", "status", "--json")) == []


def test_status_tells_the_worst_first_with_what_to_do(place: Path) -> None:
    write_findings(place)
    text = run(place, "drift", "status").stdout
    assert text.index("gw/camera") < text.index("other/camera")
    assert "cloud-bridge training retrain person --from 1.0.0" in text
    (one,) = lines(run(place, "drift", "status", "--json", "--level", "warning"))
    assert (one["subject"], one["level"]) == ("gw/camera", "alarm")
    assert lines(run(place, "drift", "status", "--json", "--gateway", "nobody")) == []
    assert [row["kind"] for row in lines(run(place, "drift", "history", "--json"))] == ["alarm"]


@pytest.mark.parametrize("command", ["proposals", "status"])
def test_what_to_do_about_a_proposal_stands_on_a_line_of_its_own(place: Path, command: str) -> None:
    write_findings(place)
    text = run(place, "drift", command).stdout
    assert "\n  cloud-bridge training retrain person --from 1.0.0\n" in text


def test_a_proposal_can_be_put_aside_and_an_unknown_one_is_named(place: Path) -> None:
    proposal = write_findings(place)
    assert run(place, "drift", "dismiss", proposal).exit_code == 0
    assert [one["state"] for one in lines(run(place, "drift", "proposals", "--json"))] == ["dismissed"]
    result = run(place, "drift", "dismiss", "nothing")
    assert result.exit_code == 2
    assert "drift proposals" in result.stderr


def test_looking_takes_what_is_there_and_accept_makes_it_usual(place: Path) -> None:
    assert run(place, "drift", "look").exit_code == 0
    result = run(place, "drift", "accept", "gw", "camera")
    assert result.exit_code == 0, result.output
    assert "accepted" in result.stdout
    assert run(place, "drift", "accept", "gw", "nothing").exit_code == 2


def test_labels_choose_what_would_be_trained_on(place: Path) -> None:
    store = SqliteStore(place / "bridge.db")
    gateway = FieldGateway(store, "plant")
    windows = [npy(window) for window in vibration_windows(4, 1)]
    ids = [gateway.send(blob, 0.9) for blob in windows[:3]]
    gateway.send(windows[3], 0.45, low_confidence=True)
    store.close()
    dry = ("training", "retrain", "vibration-anomaly", "--dry-run", "--json")
    (before,) = lines(run(place, *dry))
    assert before["samples"] == {"normal, by rule": 1, "unknown, by nobody": 3}
    assert before["version"] == "1.0.1"
    assert run(place, "training", "label", "bearing", ids[0]).exit_code == 0
    done = run(place, "training", "label", "normal", "--gateway", "plant", "--pipeline", "motor", "--since", "5000d")
    assert "4 events" in done.stdout, done.output
    assert run(place, "training", "label", "bearing", ids[0]).exit_code == 0
    (after,) = lines(run(place, *dry))
    assert after["samples"] == {"anomalous, by person": 1, "normal, by person": 3}
    assert len(lines(run(place, "training", "samples", "vibration-anomaly", "--json"))) == 4
    assert lines(run(place, "training", "samples", "vibration-anomaly", "--json", "--unlabelled")) == []


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("training", "label", "normal"), 2, "either ids of events"),
        (
            ("training", "label", "normal", "--gateway", "plant", "--pipeline", "motor", "--since", "2099-01-01"),
            2,
            "nothing was labelled",
        ),
        (("training", "samples", ""), 2, "'' : no name of a release"),
        (("training", "label", "normal", "--pipeline", "p"), 2, "--gateway and --since"),
        (("training", "label", "normal", "nothing"), 2, "no event nothing"),
        (("training", "retrain", "nothing", "--dry-run"), 2, "drift.releases"),
        (("training", "retrain", "../../etc", "--dry-run"), 2, "no name of a release"),
        (("training", "retrain", "vibration-anomaly"), 1, "0 healthy windows"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(place: Path, words: tuple[str, ...], status: int, says: str) -> None:
    result = run(place, *words)
    assert result.exit_code == status, result.output
    assert says in result.stderr
    assert not (place / "retrained").exists(), "nothing is written"
