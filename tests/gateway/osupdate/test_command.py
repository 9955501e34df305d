"""`gateway os` on a device whose gateway does not run."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
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
    assert "no gateway is running" in said.output
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


def test_a_bundle_is_checked_without_being_installed(config: Path, machine: Machine, tmp_path: Path) -> None:
    file = bundle(tmp_path / "b.raucb", SIGNER, version="1.1.0")
    assert "can be installed" in run(config, "check", str(file)).output
    assert machine.state["primary"] == "a"
