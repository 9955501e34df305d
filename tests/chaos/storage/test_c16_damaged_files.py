"""Every file that persists is damaged in turn: the program starts, says what it has lost, and works."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cloud_bridge.errors import BridgeError
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.values import Intake, StreamKey
from hil.loopback.children import Child
from hil.loopback.rig import Rig
from hil.loopback.tally import tally_of
from tests.chaos.experiment import Experiment
from tests.chaos.storage.bridge_victim import EPOCH, arrival
from tests.chaos.storage.campaign import ROOT
from tests.chaos.storage.damages import DAMAGES
from tests.e2e.conftest import Site, sites
from tests.e2e.flow import goes_on, status_of, waits

NOBODY = 65534
KEY = StreamKey("dock", EPOCH, "event")
EXIT_CONFIGURATION = 4
NOT_DATA = ("gateway.sock",)
LOCKS = ("gateway.lock", "outbox.db.lock")
REFUSED = {(lock, damage) for lock in (*LOCKS, "gateway.sock.lock") for damage in ("forbidden", "a directory")}
"""Without its locks a gateway must not run beside another; it says which one, and what to do."""


@pytest.fixture
def site(experiment: Experiment) -> Iterator[Site]:
    yield from sites(experiment.directory)


def unprivileged(rig: Rig) -> None:
    """Run the gateway as somebody whom file modes mean something to."""
    if os.geteuid() != 0:
        return
    for place in (rig.directory.parent, *rig.directory.parent.rglob("*")):
        os.chown(place, NOBODY, NOBODY, follow_symlinks=False)
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--", *rig.gateway.command]
    rig.gateway = Child("gateway", words, rig.gateway.log, {"HOME": str(rig.directory), "PYTHONPATH": str(ROOT)})


def reachable() -> bool:
    """Tell whether an unprivileged user may run this interpreter at all."""
    if os.geteuid() != 0:
        return True
    words = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "--", sys.executable, "-c", "import gateway"]
    return (
        subprocess.run(words, cwd="/", check=False, capture_output=True, env={"PYTHONPATH": str(ROOT)}).returncode == 0
    )


def test_c16_a_gateway_starts_whatever_has_become_of_its_files(experiment: Experiment, site: Site) -> None:
    rig = site(gateway={"outbox": {"ballast_bytes": 2 << 20}, "cloud": {"drain_seconds": 0.2}})
    if reachable():
        unprivileged(rig)
    else:
        experiment.log("as_root", reason="the interpreter is out of reach of other users: file modes mean nothing")
    rig.start_broker()
    rig.start_gateway()
    waits(rig, 20)
    rig.gateway.stop()
    rig.start_gateway()
    waits(rig, 30)
    rig.gateway.kill()  # with its log and index in place
    state = rig.state_directory
    whole = experiment.directory / "whole"
    shutil.copytree(state, whole, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    # Below it also lie the vault and the sealed models; what becomes of those is tried where they are tested.
    files = sorted(file.name for file in whole.iterdir() if file.is_file() and file.name not in NOT_DATA)
    assert {"outbox.db", "outbox.db-wal", "outbox.db-shm", "outbox.db.ballast", "last-run.json"} <= set(files)
    cases = [(file, damage) for file in files for damage in DAMAGES if (file, damage) not in REFUSED]
    for file, damage in experiment.random.sample(cases, min(len(cases), experiment.scaled(12, 400))):
        restore(whole, state)
        DAMAGES[damage](state / file, experiment.random)
        experiment.log("damaged", file=file, damage=damage)
        rig.start_gateway()
        goes_on(rig, "motor", 5)
        status = status_of(rig)
        before = tally_of(rig).enqueued
        waits(rig, before + 2)
        assert status["outbox"]["state"] == "open", (file, damage, status["outbox"])
        assert (state / "outbox.db").stat().st_size > 0
        assert rig.gateway.stop() == 0
        experiment.log("ran", file=file, damage=damage, epoch=status["outbox"]["epoch"])


@pytest.mark.parametrize("lock", LOCKS)
def test_c16_a_lock_that_cannot_be_taken_is_refused_with_its_name(
    experiment: Experiment, site: Site, lock: str
) -> None:
    rig = site()
    (rig.state_directory / lock).mkdir()
    ended = subprocess.run(rig.gateway.command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert str(rig.state_directory) in ended.stderr
    assert "Traceback" not in ended.stderr


def restore(whole: Path, state: Path) -> None:
    for left in list(state.iterdir()):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    owner = state.stat()
    shutil.copytree(whole, state, symlinks=True, dirs_exist_ok=True)
    for file in state.rglob("*"):
        os.chown(file, owner.st_uid, owner.st_gid, follow_symlinks=False)
    os.chown(state, owner.st_uid, owner.st_gid)


@pytest.mark.parametrize("damage", ["cut off", "zeros", "bits", "garbage", "deleted", "a directory"])
def test_c16_a_damaged_configuration_is_told_with_its_place(experiment: Experiment, site: Site, damage: str) -> None:
    rig = site()
    rig.gateway_settings["gateway"]["id"] = "not an id"  # bits that fell into a comment would do no harm
    rig.write()
    DAMAGES[damage](rig.gateway_file, experiment.random)
    ended = subprocess.run(rig.gateway.command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == EXIT_CONFIGURATION, ended.stderr[-2000:]
    assert rig.gateway_file.name in ended.stderr
    assert "Traceback" not in ended.stderr


# ---- the bridge ----------------------------------------------------------------------------------


@pytest.fixture
def killed_bridge(experiment: Experiment) -> Path:
    """A store as a SIGKILL leaves it: 200 rows, the last ones in the log only."""
    place = experiment.directory / "killed"
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from cloud_bridge.store.sqlite import SqliteStore\n"
        "from cloud_bridge.values import Intake\n"
        "from tests.chaos.storage.test_c16_damaged_files import KEY, arrival\n"
        "store = SqliteStore(Path(sys.argv[1]))\n"
        "for at in range(1, 200, 10):\n"
        "    store.ingest(Intake(1, (arrival(KEY, at, at + 9),)))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(place / "bridge.db")], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    return place


@pytest.mark.parametrize("damage", ["cut off", "zeros", "bits", "garbage", "deleted"])
@pytest.mark.parametrize("name", ["bridge.db", "bridge.db-wal", "bridge.db-shm", "bridge.db.lock"])
def test_c16_the_bridge_takes_everything_again_whatever_has_become_of_its_files(
    experiment: Experiment, killed_bridge: Path, name: str, damage: str
) -> None:
    DAMAGES[damage](killed_bridge / name, experiment.random)
    store = SqliteStore(killed_bridge / "bridge.db")
    try:
        for _ in range(3):  # damage deep inside is found by the first write, and repaired for the next
            try:
                outcome = store.ingest(Intake(2, (arrival(KEY, 1, 210),)))
            except BridgeError as error:
                experiment.log("refused", name=name, damage=damage, error=repr(error))
                continue
            break
        else:
            pytest.fail("the store never took anything again")
        assert outcome.marks[KEY] >= 210
        assert {stream.key: stream.mark for stream in store.streams()}[KEY] >= 210
    finally:
        store.close()


@pytest.mark.parametrize("damage", ["zeros", "garbage"])
def test_c16_control_a_store_that_opens_what_it_finds_takes_nothing_ever_again(
    experiment: Experiment, killed_bridge: Path, damage: str
) -> None:
    file = killed_bridge / "bridge.db"
    for log in killed_bridge.glob("bridge.db-*"):
        log.unlink()  # else the log puts the first pages back
    DAMAGES[damage](file, experiment.random)
    for _ in range(3):
        with pytest.raises(sqlite3.DatabaseError), closing(sqlite3.connect(file)) as careless:
            careless.execute("CREATE TABLE streams (key TEXT, mark INTEGER)")


def test_c16_control_a_store_that_does_not_look_has_lost_rows_and_says_nothing(
    experiment: Experiment, killed_bridge: Path
) -> None:
    def rows() -> int:
        with closing(sqlite3.connect(killed_bridge / "bridge.db")) as careless:
            return int(careless.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])

    (killed_bridge / "bridge.db-shm").unlink(missing_ok=True)
    DAMAGES["deleted"](killed_bridge / "bridge.db-wal", experiment.random)
    assert rows() == 0, "no table is left of 200 rows, and no error is told"


@pytest.mark.parametrize("damage", sorted(set(DAMAGES) - {"forbidden"}))
def test_c16_the_injector_changes_what_is_there(experiment: Experiment, damage: str) -> None:
    file = experiment.directory / "file"
    content = experiment.random.randbytes(10_000)
    for _ in range(3):
        if file.is_dir():
            file.rmdir()
        file.write_bytes(content)
        DAMAGES[damage](file, experiment.random)
        assert not file.is_file() or file.read_bytes() != content
