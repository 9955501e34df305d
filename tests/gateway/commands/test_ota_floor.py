"""`gateway ota status` says where the floor of updates lives, and a stick does not set a refused one anew."""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from gateway.commands.ota import command
from gateway.ota.errors import FloorRestoredError
from gateway.ota.floor import open_floor
from tests.gateway.vault.device import Device
from tests.simulators import swtpm
from tests.simulators.hostile_repository import SignedRepository


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[swtpm.Swtpm]:
    if reason := swtpm.missing():
        pytest.skip(reason)
    with swtpm.Swtpm(tmp_path) as running:
        yield running


@pytest.fixture
def device(tmp_path: Path, tpm: swtpm.Swtpm) -> Device:
    made = Device(tmp_path, tpm.tcti, generate_private_key(SECP256R1()), name="state")
    made.initialised()
    return made


def configured(device: Device, vault: str = "") -> Path:
    served = SignedRepository(datetime.now(UTC))
    served.add_release("press", "1.0.0")
    served.publish()
    served.save(device.root / "stick")
    (device.root / "root.json").write_bytes(served.anchor)
    level = vault or (
        f"level: tpm, tcti: '{device.tcti}', policy_key_file: {device.root}/state-policy.pem, "
        f"policy_directory: {device.policies}"
    )
    file = device.root / "gateway.yaml"
    file.write_text(
        f"gateway: {{id: dock-7, state_directory: {device.state}}}\n"
        f"vault: {{{level}}}\n"
        "sources: {own: {type: health}}\n"
        "pipelines: {own: {source: own, model: process-anomaly}}\n"
        f"ota: {{root_file: {device.root}/root.json, hardware: test-board}}\n"
    )
    return file


def asked(config: Path, *words: str) -> Result:
    return CliRunner().invoke(command, [*words, "--config", str(config)])


def line(config: Path) -> str:
    result = asked(config, "status")
    assert result.exit_code == 0, result.output
    return next(each for each in result.output.splitlines() if each.startswith("floor of updates: "))


def test_the_status_says_where_the_floor_lives_and_changes_nothing(device: Device, tpm: swtpm.Swtpm) -> None:
    config = configured(device)
    assert line(config).endswith("a file alone: it is bound to the TPM when the gateway starts")
    assert not (device.state / "ota").exists()
    open_floor(device.vault(), device.state).raise_to(fencing_token=1)
    assert line(config) == "floor of updates: in the TPM, counter 0x18051cf at 3"
    assert "there is no TPM" in line(configured(device, "level: software"))
    config = configured(device)
    tpm.kill()
    assert "a file alone: reading the counter of updates" in line(config)


def test_a_stick_does_not_set_the_floor_of_a_state_that_was_put_back_anew(device: Device, tmp_path: Path) -> None:
    config = configured(device)
    assert asked(config, "import", str(device.root / "stick")).exit_code == 0
    shutil.copytree(device.state, tmp_path / "copy")
    open_floor(device.vault(), device.state).raise_to(fencing_token=1)
    assert asked(config, "import", str(device.root / "stick")).exit_code == 0  # control: until then it does
    shutil.rmtree(device.state)
    shutil.copytree(tmp_path / "copy", device.state)
    for words in (
        ("import", str(device.root / "stick")),
        ("refresh", "--from", str(device.root / "stick")),
        ("offered",),
    ):
        refused = asked(config, *words).exception
        assert isinstance(refused, FloorRestoredError)
        assert "until the bridge has sent its twin" in str(refused)
    status = json.loads(asked(config, "status", "--json").output)
    assert (status["floor"]["place"], status["floor"]["code"]) == ("refused", "floor-restored")
    assert "refused (floor-restored), nothing is installed" in line(config)
    assert "until the bridge has sent its twin" in line(config)
    config.write_text(f"{config.read_text()}identity: {{url: 'https://bridge.example:8471'}}\n")
    assert "until the bridge has attested this device and sent its twin" in line(config)  # who has an identity waits
