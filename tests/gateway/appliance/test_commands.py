"""The commands, on a device below a folder."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.appliance.places import Places
from gateway.cli import main
from gateway.configload import read
from tests.gateway.appliance.claims import device, text


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return device(tmp_path)


def run(places: Places, *words: str, typed: str = "") -> Result:
    command, *rest = words
    root = places.settings.parent.parent
    return CliRunner().invoke(main, ["appliance", command, "--root", str(root), *rest], input=typed)


def test_a_claim_file_by_hand_provisions_the_device_once(places: Places, tmp_path: Path) -> None:
    file = tmp_path / "claim.yaml"
    file.write_bytes(text())
    done = run(places, "provision", "--from", str(file), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["gateway"] == "dock-7"
    assert read(places.config, require_files=False).config is not None
    assert file.exists()
    again = run(places, "provision", "--from", str(file))
    assert again.exit_code == 1
    assert "provisioned already" in again.output
    assert run(places, "provision", "--from", str(file), "--replace").exit_code == 0


def test_a_claim_with_mistakes_names_their_lines(places: Places, tmp_path: Path) -> None:
    file = tmp_path / "claim.yaml"
    file.write_bytes(b"version: 1\ngateway: dock-7\ncolour: red\n")
    done = run(places, "provision", "--from", str(file))
    assert done.exit_code == 1
    assert f"{file}:3:1: error: colour: unknown key `colour`" in done.output
    assert not places.config.exists()


def test_a_claim_on_the_boot_partition_is_found_by_a_scan(places: Places) -> None:
    (places.esp / "sluice-claim.yaml").write_bytes(text())
    done = run(places, "provision", "--scan", "--no-cameras")
    assert done.exit_code == 0, done.output
    assert "This device is now the gateway dock-7 (from boot partition, sluice-claim.yaml)." in done.output
    assert not (places.esp / "sluice-claim.yaml").exists()


@pytest.mark.parametrize("words", [(), ("--scan", "--from", "{file}")])
def test_it_must_be_said_where_the_claim_comes_from(places: Places, tmp_path: Path, words: tuple[str, ...]) -> None:
    file = tmp_path / "claim.yaml"
    file.write_bytes(text())
    assert run(places, "provision", *(word.format(file=file) for word in words)).exit_code == 2


def test_a_reset_asks_for_the_id_of_the_gateway(places: Places) -> None:
    (places.esp / "sluice-claim.yaml").write_bytes(text())
    run(places, "provision", "--scan", "--no-cameras")
    wrong = run(places, "reset", typed="dock-8\n")
    assert wrong.exit_code == 1
    assert "nothing was done" in wrong.output
    assert not places.reset_request.exists()
    assert run(places, "reset", "--yes", "--gateway", "dock-8").exit_code == 1
    assert not places.reset_request.exists()
    assert run(places, "reset", typed="dock-7\n").exit_code == 0
    assert places.reset_request.exists()
    assert "withdrawn" in run(places, "reset", "--cancel").output
    assert json.loads(run(places, "reset", "--yes", "--json").stdout)["request"]["by"] == "command"


def test_nothing_is_erased_where_nobody_asked(places: Places) -> None:
    done = run(places, "erase", "--no-reboot")
    assert done.exit_code == 0
    assert "no reset was asked for" in done.output
    assert not places.reset_marker.exists()


def test_a_device_that_is_not_provisioned_passes_the_soak(places: Places) -> None:
    done = run(places, "health", "--soak", "0", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["verdict"] == "unprovisioned"


def test_a_gateway_that_does_not_run_fails_the_soak_with_a_reason(places: Places) -> None:
    (places.esp / "sluice-claim.yaml").write_bytes(text())
    run(places, "provision", "--scan", "--no-cameras")
    done = run(places, "health", "--soak", "0", "--start-within", "0")
    assert done.exit_code == 1
    assert "against it: the gateway does not answer" in done.output


def test_settings_are_given_to_the_system(places: Places) -> None:
    (places.esp / "sluice-claim.yaml").write_bytes(text(network=[{"interface": "en*"}]))
    run(places, "provision", "--scan", "--no-cameras")
    assert json.loads(run(places, "activate", "--json").stdout)["networks"] == ["10-sluice-0.network"]


def test_a_support_bundle_is_private_and_never_fails_for_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "bundle.tar.gz"
    config = tmp_path / "none.yaml"
    words = ["support-bundle", "--no-doctor", "--config", str(config), "--output", str(file)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "without status.json" in done.output
    assert file.stat().st_mode & 0o777 == 0o600
    bad = CliRunner().invoke(main, [*words[:-1], str(tmp_path / "nowhere/bundle.tar.gz")])
    assert bad.exit_code == 1
    assert "name another place with --output" in bad.output
