"""Commands of root below a state directory that belongs to somebody else."""

import encodings.ascii  # noqa: F401 - read before this process is somebody who may not read root's Python
import json
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gateway
from gateway.config import Vault as VaultSettings
from gateway.control import SOCKET_NAME
from gateway.identity.record import IdentityFiles
from gateway.osupdate.journal import Journal as OsJournal
from gateway.ota.errors import OtaError
from gateway.ota.journal import Installed, Journal, JournalError
from gateway.ota.slots import pin
from gateway.owner import Account, OwnerError, as_owner, become_owner, other_owner_of, require_reach
from gateway.statedir import locked_state
from gateway.vault.errors import VaultError
from gateway.vault.vault import Vault
from tests.gateway.appliance.claims import CODE
from tests.simulators.os_bundle import Signer, bundle
from tests.simulators.rauc import Machine

NOBODY = 65534
STRANGER = 12345
NEVER = Path("/nonexistent")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others may reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def state(folder: Path) -> Path:
    """The state directory of a gateway that is not root."""
    state = folder / "state"
    state.mkdir(mode=0o700)
    os.chown(state, NOBODY, NOBODY)
    return state


@pytest.fixture
def machine(folder: Path) -> Machine:
    signer = Signer.make()
    made = Machine.make(
        folder / "machine",
        compatible="sluice-uefi-amd64",
        version="1.0.0",
        floor="1.0.0",
        keyring=signer.keyring(folder / "keyring.pem"),
    )
    bundle(folder / "b.raucb", signer, version="1.1.0")
    return made


@pytest.fixture
def config(folder: Path, state: Path, machine: Machine) -> Path:
    settings: dict[str, Any] = {
        "gateway": {"id": "dock-7", "state_directory": str(state)},
        "sources": {"machine": {"type": "health"}},
        "pipelines": {"motor": {"source": "machine", "model": "process-anomaly"}},
        "vault": {"level": "software"},
        "identity": {"url": "https://bridge.test:8443"},
        "ota": {"url": "https://bridge.test:8444", "root_file": str(folder / "root.json")},
        "os": {"rauc": [*machine.command], "release_file": str(machine.release_file)},
    }
    file = folder / "gateway.yaml"
    file.write_text(json.dumps(settings))
    return file


def python(state: Path) -> tuple[str, dict[str, str]]:
    """Return an interpreter whose library the owner of the state may read; one below root's home is for root alone."""
    with as_owner(state):
        if os.access(os.__file__, os.R_OK, effective_ids=True):
            return sys.executable, dict(os.environ)
    version = "import sys; print(sys.version_info[:2] == tuple(map(int, sys.argv[1:])))"
    debians = "/usr/bin/python3"
    if Path(debians).exists():
        same = subprocess.run(
            [debians, "-c", version, *map(str, sys.version_info[:2])], capture_output=True, text=True, check=True
        )
        if same.stdout.strip() == "True":
            places = (str(Path(gateway.__file__).parents[1]), sysconfig.get_path("purelib"))
            return debians, {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    pytest.skip(f"only root may read {os.__file__}, and there is no other Python of this version")


def run(config: Path, *words: str, user: int = 0) -> "subprocess.CompletedProcess[str]":
    executable, environment = python(config.parent / "state")
    command = [executable, "-m", "gateway", *words, "--config", str(config)]
    if user:
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def owners(state: Path) -> dict[str, int]:
    return {str(each.relative_to(state)): each.stat().st_uid for each in state.rglob("*")}


# ---- being somebody else -----------------------------------------------------------------------------------


def test_root_is_the_owner_meanwhile_and_root_again_afterwards(state: Path) -> None:
    groups = os.getgroups()
    with as_owner(state):
        assert (os.geteuid(), os.getegid()) == (NOBODY, Account.of(state).group)
        (state / "file").touch()
    assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, 0, groups)
    assert owners(state) == {"file": NOBODY}


def test_where_root_owns_the_directory_nothing_changes(folder: Path) -> None:
    with as_owner(folder):
        assert os.geteuid() == 0
    become_owner(folder)
    assert os.geteuid() == 0


def test_a_directory_that_is_not_there_belongs_to_whom_it_would_be_made_for(folder: Path, state: Path) -> None:
    assert Account.of(state / "a" / "b").user == NOBODY
    assert Account.of(folder / "a").user == 0


def test_who_becomes_the_owner_never_is_root_again(state: Path) -> None:
    code = (
        "import os, pathlib, sys; from gateway.owner import become_owner; become_owner(pathlib.Path(sys.argv[1]))\n"
        "print(os.getresuid())\n"
        "try: os.seteuid(0)\n"
        "except PermissionError: print('refused')"
    )
    executable, environment = python(state)
    said = subprocess.run(
        [executable, "-c", code, str(state)], capture_output=True, text=True, check=True, env=environment
    )
    assert said.stdout.splitlines() == [str((NOBODY, NOBODY, NOBODY)), "refused"]


def test_a_python_that_is_roots_alone_is_told_before_it_fails_somewhere(folder: Path, state: Path) -> None:
    library = folder / "os.py"
    library.touch(mode=0o600)
    code = (
        "import os, pathlib, sys; from gateway.owner import become_owner; os.__file__ = sys.argv[2]\n"
        "become_owner(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(state), str(library)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert f"may not read the Python of this program ({library})" in said.stderr


def test_what_the_owner_cannot_read_is_told_with_the_remedy(folder: Path, state: Path) -> None:
    mine = folder / "mine"
    mine.mkdir(mode=0o700)
    require_reach(mine)
    with as_owner(state), pytest.raises(OwnerError, match=r"mine cannot be read by .*copy it"):
        require_reach(mine)


def test_a_gateway_of_root_in_the_directory_of_another_user_says_what_comes_of_it(config: Path, state: Path) -> None:
    word = "running_as_root_in_anothers_directory"
    with locked_state(state):  # so that it ends at once
        assert word in run(config, "run").stderr
        os.chown(state, 0, 0)
        said = run(config, "run").stderr
    assert word not in said, "the control: its own"
    assert "another gateway is running" in said
    assert (other_owner_of(state), other_owner_of(state / "not-there")) == ("", "")


# ---- commands of root, and what the gateway finds ----------------------------------------------------------


def test_a_pin_of_root_leaves_a_journal_that_the_gateway_reads(config: Path, state: Path) -> None:
    there = json.loads(run(config, "models", "list", "--json").stdout)
    version = next(each["version"] for each in there if each["name"] == "process-anomaly")
    said = run(config, "ota", "pin", "motor", f"process-anomaly@{version}")
    assert said.returncode == 0, said.stderr
    assert set(owners(state).values()) == {NOBODY}, owners(state)
    with as_owner(state):
        found = Journal(state)
    assert (found.damage, found.book.slot("motor").pinned) == (
        "",
        Installed(name="process-anomaly", version=version),
    )


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        (("status",), 0o700),
        (("status",), 0o755),
        (("pin", "motor", "m@1.0.0"), 0o755),
        (("import", "."), 0o755),
        (("offered",), 0o755),
    ],
    ids=["a closed directory", "the journal", "the directory", "the metadata", "the floor"],
)
def test_who_is_neither_root_nor_the_owner_is_told_whom_to_be(
    config: Path, state: Path, words: tuple[str, ...], mode: int
) -> None:
    (config.parent / "root.json").write_text("{}")
    with as_owner(state):
        Journal(state).change(pin("motor", Installed(name="m", version="1.0.0"), "now"))
    state.chmod(mode)
    refused = run(config, "ota", *(str(config.parent) if each == "." else each for each in words), user=STRANGER)
    assert refused.returncode in {1, 4}
    assert "sudo -u 'nobody'" in refused.stderr or "ask as root or as the gateway's user" in refused.stderr
    assert not any(each in refused.stderr for each in ("chown", "free space", "no gateway is running"))


@pytest.mark.parametrize("words", [("status",), ("refresh",)], ids=lambda words: words[0])
def test_who_may_not_ask_the_running_gateway_is_not_told_that_none_runs(
    config: Path, state: Path, words: tuple[str, ...]
) -> None:
    state.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(state / SOCKET_NAME))
        listener.listen()
        (state / SOCKET_NAME).chmod(0o600)
        refused = run(config, "ota", *words, user=STRANGER)
    assert refused.returncode == 1
    assert "gateway.sock belongs to another user; ask as root or as the gateway's user" in refused.stderr
    assert "no gateway is running" not in refused.stdout + refused.stderr


def test_control_a_journal_that_root_writes_itself_is_none_to_the_gateway(state: Path) -> None:
    Journal(state).change(pin("motor", Installed(name="m", version="1.0.0"), "now"))
    with as_owner(state), pytest.raises((JournalError, OtaError)):
        Journal(state)


def test_an_image_that_root_installs_without_a_gateway_is_known_to_the_next_one(
    config: Path, folder: Path, state: Path, machine: Machine
) -> None:
    said = run(config, "os", "install", str(folder / "b.raucb"))
    assert said.returncode == 0, said.stderr
    assert set(owners(state).values()) == {NOBODY}, owners(state)
    with as_owner(state):
        found = OsJournal(state)
    assert found.damage == ""
    assert found.book.job is not None
    assert (found.book.job.stage, found.book.job.version) == ("installed", "1.1.0")
    back = run(config, "os", "cancel")
    assert back.returncode == 0, back.stderr
    assert machine.state["primary"] == "a"
    with as_owner(state):
        assert OsJournal(state).book.job is None
    assert set(owners(state).values()) == {NOBODY}


def test_a_vault_that_root_makes_anew_opens_to_the_gateway(config: Path, state: Path) -> None:
    for words in (("init",), ("init", "--anew"), ("rotate",), ("reseal",)):
        said = run(config, "vault", *words)
        assert said.returncode == 0, said.stderr
    assert set(owners(state).values()) == {NOBODY}, owners(state)
    with as_owner(state):
        Vault.open(VaultSettings(level="software"), state, appliance_marker=NEVER).check()


def test_control_a_vault_that_root_keeps_to_itself_is_shut(state: Path) -> None:
    Vault.open(VaultSettings(level="software"), state, appliance_marker=NEVER).initialise()
    with as_owner(state), pytest.raises(VaultError):
        Vault.open(VaultSettings(level="software"), state, appliance_marker=NEVER).check()


def test_a_claim_that_root_leaves_is_read_by_the_gateway(config: Path, state: Path) -> None:
    said = run(config, "identity", "enrol", CODE)
    assert said.returncode == 0, said.stderr
    with as_owner(state):
        assert IdentityFiles(state).read_claim() == CODE


def test_asking_as_root_leaves_nothing_of_roots(config: Path, state: Path) -> None:
    for words in (("ota", "status"), ("vault", "status"), ("os", "status")):
        run(config, *words)
    assert set(owners(state).values()) <= {NOBODY}, owners(state)


@pytest.mark.parametrize("refused", ["setgroups", "seteuid"])
def test_root_that_may_become_nobody_is_told_so_and_stays_root(
    state: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """As in a container without the capabilities SETGID and SETUID."""
    groups, change = os.getgroups(), getattr(os, refused)

    def without(wanted: object) -> None:
        if wanted in (0, groups):
            change(wanted)
            return
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, refused, without)
    for become in (become_owner, lambda place: as_owner(place).__enter__()):
        with pytest.raises(OwnerError, match=r"may not become that user.*call it as .*SETGID and SETUID"):
            become(state)
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, os.getgid(), groups)
