"""`gateway ota install` at a device without a running gateway: what it takes for the next start."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from nacl.public import PublicKey, SealedBox

from gateway.commands.ota import command
from gateway.commands.ota_fetch import _config, repository_here
from gateway.config import Vault as VaultSettings
from gateway.ota.errors import OtaError, TrustError, WrongHardwareError
from gateway.ota.install import KeyAwaitedError
from gateway.ota.journal import Installed, look
from gateway.vault.aead import KEY_BYTES
from gateway.vault.vault import Vault
from tests.gateway.commands.test_ota_fetch import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def install(bench: Bench, model: str) -> Result:
    return CliRunner().invoke(command, ["install", "own", model, "--config", str(bench.config)])


def take_key(bench: Bench, name: str, version: str) -> None:
    """Give the device the key of a release of the list, as a grant or an import of the plain release does."""
    repository = repository_here(*_config(bench.config))
    vault = Vault.open(VaultSettings(level="software"), bench.state)
    vault.initialise()
    box = SealedBox(PublicKey(vault.recipient()))
    vault.accept_grant(repository.digest(name, version), bytes(box.encrypt(bytes(KEY_BYTES))))


def wanted(bench: Bench) -> Installed | None:
    slot = look(bench.state)[0].slot("own")
    return slot.wanted.model if slot.wanted is not None else None


def test_a_release_of_the_list_is_wanted_from_the_next_start(bench: Bench) -> None:
    bench.served.add_release("press", "1.1.0", token=1)
    bench.publish()
    assert bench.imported().exit_code == 0
    take_key(bench, "press", "1.1.0")
    result = install(bench, "press@1.1.0")
    assert result.exit_code == 0, result.output
    assert "its next start begins with that" in result.output
    assert wanted(bench) == Installed(name="press", version="1.1.0")


@pytest.mark.parametrize("model", ["press@9.9.9", "läud@1.0.0", "press@../1.1.0"])
def test_what_is_not_in_the_list_is_refused_and_leaves_no_wish(bench: Bench, model: str) -> None:
    bench.served.add_release("press", "1.1.0", token=1)
    bench.publish()
    assert bench.imported().exit_code == 0
    result = install(bench, model)
    assert isinstance(result.exception, OtaError)
    assert "is not in the signed list" in str(result.exception)
    assert "`gateway ota refresh` asks for a newer list" in str(result.exception)
    assert wanted(bench) is None


def test_what_is_for_other_hardware_is_refused(bench: Bench) -> None:
    bench.served.add_release("press", "1.0.0", token=1)
    bench.served.add_release("press", "1.1.0", token=2, hardware=("other-board",))
    bench.publish()
    assert bench.imported("--all").exit_code == 0
    assert isinstance(install(bench, "press@1.1.0").exception, WrongHardwareError)
    assert wanted(bench) is None


def test_without_a_list_nothing_is_wanted(bench: Bench) -> None:
    result = install(bench, "press@1.1.0")
    assert isinstance(result.exception, TrustError)
    assert "a refresh or an import brings it" in str(result.exception)
    assert wanted(bench) is None


def test_without_a_key_and_without_a_bridge_it_is_refused_at_once_with_what_brings_the_key(bench: Bench) -> None:
    bench.served.add_release("press", "1.1.0", token=1)
    bench.publish()
    assert bench.imported().exit_code == 0
    result = install(bench, "press@1.1.0")
    assert isinstance(result.exception, KeyAwaitedError)
    assert "`cloud-bridge model extract NAME@VERSION DIR`" in str(result.exception)
    assert wanted(bench) is None


def test_where_a_bridge_grants_keys_it_is_wanted_and_the_key_that_is_missing_is_said(bench: Bench) -> None:
    bench.config.write_text(f"{bench.config.read_text()}identity: {{url: 'https://bridge.example:8471'}}\n")
    bench.served.add_release("press", "1.1.0", token=1)
    bench.publish()
    assert bench.imported().exit_code == 0
    result = install(bench, "press@1.1.0")
    assert result.exit_code == 0, result.output
    assert "the next attestation by the bridge brings it" in result.output
    assert wanted(bench) == Installed(name="press", version="1.1.0")
