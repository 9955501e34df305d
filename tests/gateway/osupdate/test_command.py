"""`gateway os` on a device whose gateway does not run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.osupdate.journal import Job, Journal, begin
from tests.simulators.os_bundle import Signer, bundle
from tests.simulators.rauc import Machine

SIGNER = Signer.make()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(
        tmp_path / "machine",
        compatible="sluice-uefi-amd64",
        version="1.0.0",
        floor="1.0.0",
        keyring=SIGNER.keyring(tmp_path / "keyring.pem"),
    )


@pytest.fixture
def config(tmp_path: Path, machine: Machine) -> Path:
    file = tmp_path / "gateway.yaml"
    settings = {
        "gateway": {"id": "dock-7", "state_directory": str(tmp_path / "state")},
        "sources": {"machine": {"type": "health"}},
        "pipelines": {},
        "vault": {"level": "software"},
        "os": {"rauc": [*machine.command], "release_file": str(machine.release_file)},
    }
    file.write_text(json.dumps(settings))
    return file


def run(config: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["os", *words, "--config", str(config)])


def test_status_tells_both_slots_and_the_floor(config: Path) -> None:
    said = run(config, "status")
    assert said.exit_code == 0, said.output
    assert "sluice-uefi-amd64 1.0.0" in said.output
    assert "no gateway answers" in said.output
    answer = json.loads(run(config, "status", "--json").output)
    assert answer["system"]["floor"] == "1.0.0"
    assert answer["system"]["other_slot"] == "b"


def test_without_a_gateway_a_bundle_is_installed_at_once_and_kept_in_the_journal(
    config: Path, machine: Machine, tmp_path: Path
) -> None:
    file = bundle(tmp_path / "b.raucb", SIGNER, version="1.1.0")
    done = run(config, "install", str(file))
    assert done.exit_code == 0, done.output
    assert machine.state["primary"] == "b"
    answer = json.loads(run(config, "status", "--json").output)
    assert (answer["job"]["stage"], answer["job"]["to_slot"]) == ("installed", "b")
    assert "installed" in run(config, "history").output


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"version": "0.9.0"}, "is below 1.0.0"),
        ({"version": "1.1.0", "compatible": "sluice-jetson"}, "this device is"),
        ({"version": "1.1.0", "signer": Signer.make("x")}, "signature verification failed"),
    ],
)
def test_a_bundle_that_must_not_be_installed_is_refused_with_the_reason(
    config: Path, machine: Machine, tmp_path: Path, parts: dict[str, object], words: str
) -> None:
    file = bundle(tmp_path / "b.raucb", **{"signer": SIGNER, **parts})  # type: ignore[arg-type]
    for verb in ("check", "install"):
        refused = run(config, verb, str(file))
        assert refused.exit_code == 1
        assert words in refused.output
    assert machine.state["primary"] == "a"


def test_nothing_is_installed_over_the_last_good_slot_while_the_running_one_is_on_trial(
    config: Path, machine: Machine, tmp_path: Path
) -> None:
    file = bundle(tmp_path / "b.raucb", SIGNER, version="1.1.0")
    slots = machine.state["slots"]
    machine.set(slots=slots | {"a": slots["a"] | {"blessed": False}})
    refused = run(config, "install", str(file))
    assert refused.exit_code == 1
    assert "rauc status mark-good booted" in refused.output
    assert machine.state["primary"] == "a"
    machine.bless()
    assert run(config, "install", str(file)).exit_code == 0


def test_a_bundle_is_checked_without_being_installed(config: Path, machine: Machine, tmp_path: Path) -> None:
    file = bundle(tmp_path / "b.raucb", SIGNER, version="1.1.0")
    assert "can be installed" in run(config, "check", str(file)).output
    assert machine.state["primary"] == "a"


def test_asking_how_it_stands_writes_nothing(config: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert run(config, "status").exit_code == 0
    assert not state.exists(), "not even the directory is made"
    damaged = state / "os" / "journal.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"{half a docu")
    said = run(config, "status")
    assert said.exit_code == 0
    assert f"{damaged} cannot be read" in said.output
    refused = run(config, "restart")
    assert refused.exit_code == 1
    assert f"{damaged} cannot be read" in refused.output
    assert [*damaged.parent.iterdir()] == [damaged]
    assert damaged.read_bytes() == b"{half a docu", "putting it aside is for the gateway, which says so to the cloud"


def test_a_restart_without_anything_installed_is_refused_and_writes_nothing(config: Path, tmp_path: Path) -> None:
    refused = run(config, "restart")
    assert refused.exit_code == 1
    assert "nothing is installed that waits for a restart" in refused.output
    assert not (tmp_path / "state").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(("may_read", "words"), [(True, "under way  1.1.0"), (False, "belongs to root: call it")])
def test_another_user_is_told_what_it_may_read(
    config: Path,
    machine: Machine,
    may_read: bool,
    words: str,
) -> None:
    """The directories above are open to it in both cases; its state a gateway makes for itself alone."""
    del machine
    folder = config.parent
    Journal(folder / "state").change(begin(Job(compatible="sluice-uefi-amd64", version="1.1.0"), "2026-01-31"))
    opened = [folder, *folder.parents][:4]
    for each in opened:
        each.chmod(each.stat().st_mode | 0o055)
    if may_read:
        for name in ("state", "state/os", "state/os/journal.json"):
            (folder / name).chmod(0o755)
    before = {each: each.stat().st_mtime_ns for each in (folder / "state").rglob("*")}
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "gateway"]
    said = subprocess.run(
        [*other, "os", "status", "--config", str(config)], capture_output=True, text=True, check=False, timeout=60
    )
    assert said.returncode == 0, said.stderr
    assert words in said.stdout
    assert before == {each: each.stat().st_mtime_ns for each in (folder / "state").rglob("*")}
