"""A backup holds what the bridge knows of its fleet, not only the records; and says what it does not hold."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloud_bridge.cli import main
from cloud_bridge.drift import book
from cloud_bridge.drift.schema import DRIFT
from cloud_bridge.identity.database import SqliteDatabase
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.twins.database import FLEET
from cloud_bridge.twins.desired import Change, apply_changes, find_desired
from cloud_bridge.twins.labels import all_labels, set_labels
from gateway.wire.messages import ModelRef
from tests.cloud_bridge.registry.kit import Site, release


class Bridge:
    """What a bridge leaves on the disk, below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self.store = directory / "bridge.db"
        store = SqliteStore(self.store)
        store.open()
        store.close()
        self.config = directory / "bridge.yaml"
        self.config.write_text(
            json.dumps(
                {
                    "store": {"url": f"sqlite:///{self.store}"},
                    "identity": {"trust_domain": "sluice.test", "directory": str(directory / "identity")},
                    "registry": {"url": str(directory / "repository"), "keys": str(directory / "keys")},
                }
            )
        )
        self.site = Site(directory).begin()

    def live(self, token_ns: int) -> None:
        """Have devices, twins, drift and a release."""
        fleet, drift = self.databases()
        with fleet.transaction() as tx:
            set_labels(tx, "gw-1", {"site": "berlin"})
            apply_changes(tx, [Change("gw-1", "camera", ModelRef(name="m", version="1.0.0"), 0)], token_ns)
        with drift.transaction() as tx:
            book.put_label(tx, "gw-1", "event-1", "normal", 1)
        fleet.close()
        drift.close()
        self.site.publish(release(self.directory))

    def databases(self) -> tuple[SqliteDatabase, SqliteDatabase]:
        return SqliteDatabase(self.directory / "fleet.db", FLEET), SqliteDatabase(self.directory / "drift.db", DRIFT)

    def call(self, *words: str) -> Result:
        return CliRunner().invoke(main, [*words, "--config", str(self.config)])

    def known(self) -> tuple[dict[str, dict[str, str]], int, dict[tuple[str, str], str], list[str]]:
        """Return labels of devices, twins, labels of events, releases of the registry."""
        fleet, drift = self.databases()
        with fleet.transaction() as tx:
            labels, twins = all_labels(tx), len(find_desired(tx))
        with drift.transaction() as tx:
            judged = book.labels(tx)
        fleet.close()
        drift.close()
        return labels, twins, judged, [one.label for one in self.site.registry.ledger.releases()]


@pytest.fixture
def bridge(tmp_path: Path) -> Bridge:
    made = Bridge(tmp_path / "bridge")
    made.live(10**18)
    return made


def lose(bridge: Bridge) -> None:
    """Lose every database."""
    bridge.site.db.close()
    for file in bridge.directory.rglob("*.db*"):
        file.unlink()


def test_after_a_restore_the_bridge_knows_its_fleet_its_judgements_and_its_releases(
    bridge: Bridge, tmp_path: Path
) -> None:
    before = bridge.known()
    assert before == ({"gw-1": {"site": "berlin"}}, 1, {("gw-1", "event-1"): "normal"}, ["detector 1.0.0"])
    answer = bridge.call("backup", str(tmp_path / "copy.db"), "--json")
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    names = {Path(file).name for file in told["files"]}
    assert names == {"copy.db", "copy.db.fleet.db", "copy.db.drift.db", "copy.db.identity.db"}
    assert all(Path(file).stat().st_mode & 0o077 == 0 for file in told["files"])
    lose(bridge)
    back = bridge.call("restore", str(tmp_path / "copy.db"))
    assert back.exit_code == 0, back.output
    assert "revoke them again" in back.output
    assert bridge.known() == before


def test_the_control_with_the_store_alone_all_of_that_is_gone(bridge: Bridge, tmp_path: Path) -> None:
    assert bridge.call("backup", str(tmp_path / "copy.db")).exit_code == 0
    for file in tmp_path.glob("copy.db.*"):
        file.unlink()
    lose(bridge)
    assert bridge.call("restore", str(tmp_path / "copy.db")).exit_code == 0
    bridge.site.db.close()
    fleet, drift = bridge.databases()
    with fleet.transaction() as tx:
        assert all_labels(tx) == {}
    with drift.transaction() as tx:
        assert book.labels(tx) == {}
    fleet.close()
    drift.close()
    assert not (bridge.directory / "identity" / "identity.db").exists()


def test_what_a_backup_does_not_hold_is_told_with_the_command_that_keeps_it(bridge: Bridge, tmp_path: Path) -> None:
    answer = bridge.call("backup", str(tmp_path / "copy.db"))
    assert answer.exit_code == 0
    for place in ("identity", "keys", "repository"):
        assert str(bridge.directory / place) in answer.output
    assert "tar --create" in answer.output


def test_a_name_that_is_taken_is_refused_before_anything_is_copied(bridge: Bridge, tmp_path: Path) -> None:
    (tmp_path / "copy.db.drift.db").touch()
    answer = bridge.call("backup", str(tmp_path / "copy.db"))
    assert answer.exit_code != 0
    assert sorted(file.name for file in tmp_path.glob("copy*")) == ["copy.db.drift.db"]


def test_a_copy_of_something_else_changes_nothing(bridge: Bridge, tmp_path: Path) -> None:
    assert bridge.call("backup", str(tmp_path / "copy.db")).exit_code == 0
    (tmp_path / "copy.db.fleet.db").write_bytes((tmp_path / "copy.db.drift.db").read_bytes())
    before = bridge.known()
    answer = bridge.call("restore", str(tmp_path / "copy.db"))
    assert answer.exit_code != 0
    assert "fleet_schema" in answer.output
    assert not list(bridge.directory.rglob("*.before-restore-*"))
    assert bridge.known() == before
