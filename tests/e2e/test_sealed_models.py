"""Weights run from the sealed store alone, and a key that is not there stops nothing but those who wait for it."""

import json
import shutil
import sqlite3
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from gateway.control import ask
from hil.loopback.rig import GATEWAY_ID, Rig, eventually
from hil.loopback.tally import tally_of
from tests.e2e.conftest import Site
from tests.e2e.flow import arrives, goes_on, logged, settle, status_of, statuses, waits
from tests.e2e.releases import LOUD, loud
from tests.e2e.test_bad_input import gateway_command


def holders(directory: Path, canary: bytes) -> list[Path]:
    """Return the files below a directory that hold some bytes."""
    return [file for file in directory.rglob("*") if file.is_file() and canary in file.read_bytes()]


def metric(rig: Rig, name: str) -> float:
    """Return a metric without labels, or with those that are part of the name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{rig.ports.metrics}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))


def test_weights_are_nowhere_in_clear_but_where_they_came_from(site: Site, tmp_path: Path) -> None:
    rig = site()
    rig.start()
    waits(rig, 5)
    arrives(rig)
    (file,) = (tmp_path / "models" / LOUD).rglob("*.tflite")
    canary = file.read_bytes()[200:264]
    assert len(set(canary)) > 1
    assert holders(tmp_path / "models", canary) == [file]  # the search finds what is there
    assert holders(rig.directory, canary) == []
    vault = status_of(rig)["vault"]
    assert vault["level"] == "software"
    assert vault["ready"]
    assert any(label.startswith(LOUD) for label in vault["releases"])
    assert "development" in vault["warnings"][0]
    assert len(logged(rig, "vault_is_not_protected")) == 1
    shown = gateway_command("status", "--config", str(rig.gateway_file)).stdout
    assert "level software" in shown
    assert "for development only" in shown
    assert metric(rig, 'sluice_vault_level{level="software"}') == 1
    settle(rig)


def test_a_sealed_release_runs_when_its_plain_files_are_gone(site: Site, tmp_path: Path) -> None:
    rig = site()
    rig.start()
    waits(rig, 3)
    assert rig.gateway.stop() == 0
    shutil.rmtree(tmp_path / "models" / LOUD)
    rig.start_gateway()
    goes_on(rig, "motor")
    listed = json.loads(gateway_command("models", "list", "--json", "--config", str(rig.gateway_file)).stdout)
    assert next(each for each in listed if each["name"] == LOUD)["sealed"]
    checked = gateway_command("models", "check", LOUD, "--config", str(rig.gateway_file))
    assert checked.returncode == 0
    assert "sealed, sizes right" in checked.stdout
    settle(rig)


@pytest.mark.parametrize("part", ["manifest.json", "*.sealed"])
def test_a_sealed_release_that_is_damaged_comes_back_by_itself_and_the_cloud_hears_of_it(site: Site, part: str) -> None:
    rig = site()
    rig.start()
    waits(rig, 3)
    assert rig.gateway.stop() == 0
    (damaged,) = (rig.state_directory / "models" / LOUD).rglob(part)
    damaged.write_bytes(b"")
    rig.start_gateway()
    goes_on(rig, "motor")
    assert not logged(rig, "component_failed")
    eventually(lambda: notices(rig) == ["release_mended"], "the notice reaches the cloud")
    (kept,) = (rig.state_directory / "models-damaged").iterdir()
    assert kept.name.startswith(LOUD)
    settle(rig)


def test_a_release_for_two_pipelines_is_sealed_once(site: Site) -> None:
    motor = {"source": "loud", "model": LOUD, "rules": [{"name": "anomaly", "min_score": 0.5}]}
    rig = site(pipelines={f"motor-{number}": motor for number in range(3)})
    rig.start()
    for number in range(3):
        goes_on(rig, f"motor-{number}")
    assert len([*(rig.state_directory / "models" / LOUD).rglob("*.sealed")]) == 1
    settle(rig)


def test_without_its_key_a_pipeline_waits_and_comes_by_itself_while_all_else_runs(site: Site, tmp_path: Path) -> None:
    loud(tmp_path / "models", "other")
    other = {"source": "loud", "model": "other", "rules": [{"name": "anomaly", "min_score": 0.5}]}
    rig = site(pipelines={"other": other})
    rig.start()
    goes_on(rig, "motor")
    goes_on(rig, "other")
    assert rig.gateway.stop() == 0
    (key,) = (
        file
        for file in (rig.state_directory / "vault").rglob("keys/*.json")
        if json.loads(file.read_bytes())["label"].startswith("other ")
    )
    aside = tmp_path / "key-of-other"
    shutil.move(key, aside)

    shutil.move(tmp_path / "models" / "other", tmp_path / "gone")
    rig.start_gateway()
    eventually(lambda: statuses(rig)["other"]["waits_for"] == "key", "the pipeline waits for its key")
    status = status_of(rig)
    assert statuses(rig)["other"]["state"] == "starting"
    assert "no key for the release" in statuses(rig)["other"]["last_error"]
    assert "no key for the release" in status["components"]["pipeline-other"]
    assert "no key for the release" in status["vault"]["waiting"]["other"]
    goes_on(rig, "motor")
    arrives(rig)
    eventually(lambda: metric(rig, "sluice_vault_refusals_total") >= 1, "the refusal is counted")
    assert metric(rig, 'sluice_vault_waiting{pipeline="other"}') == 1
    assert "waits (key)" in gateway_command("status", "--config", str(rig.gateway_file)).stdout

    shutil.move(aside, key)
    goes_on(rig, "other")
    status = status_of(rig)
    assert statuses(rig)["other"]["waits_for"] == ""
    assert "pipeline-other" not in status["components"]
    assert status["vault"]["waiting"] == {}
    # However often it was tried, it is told twice: when it began, and when it was over.
    assert len(logged(rig, "weights_withheld")) == len(logged(rig, "weights_given")) == 1
    assert not logged(rig, "component_failed")
    eventually(lambda: len(notices(rig)) == 2, "both notices reach the cloud")
    assert notices(rig) == ["weights_withheld", "weights_given"]
    settle(rig)


def notices(rig: Rig) -> list[str]:
    """Return the codes of the notices that the cloud has."""
    with closing(sqlite3.connect(rig.directory / "bridge" / "bridge.db")) as db:
        rows = db.execute("SELECT body FROM records WHERE kind = 'notice' ORDER BY seq").fetchall()
    return [json.loads(body)["code"] for (body,) in rows]


def test_the_running_gateway_leaves_no_core_dump(site: Site) -> None:
    """That other processes of its user cannot read its memory is shown in tests/gateway/vault/test_weights.py."""
    rig = site()
    rig.start()
    limits = Path(f"/proc/{rig.gateway.pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4] == "0"
    mine = next(line for line in Path("/proc/self/limits").read_text().splitlines() if line.startswith("Max core"))
    if mine.split()[5] == "0":
        pytest.skip("core dumps are off for this test already, so it cannot tell")


@pytest.mark.parametrize("vault", [None, {}])
def test_a_configuration_without_a_level_is_refused_with_both_explained(
    site: Site, vault: dict[str, str] | None
) -> None:
    rig = site()
    rig.gateway_settings.pop("vault")
    if vault is not None:
        rig.gateway_settings["vault"] = vault
    rig.write()
    refused = gateway_command("run", "--config", str(rig.gateway_file))
    assert refused.returncode == 4
    for words in ("is missing", "`tpm` seals", "`software` keeps", "for development"):
        assert words in refused.stderr


def test_an_identity_that_nobody_answers_stops_nothing_else(site: Site) -> None:
    rig = site(gateway={"identity": {"url": "https://127.0.0.1:9", "fingerprint": "ab" * 32}})
    rig.start()
    eventually(lambda: (status_of(rig)["identity"] or {}).get("state") == "unreachable", "the identity says so")
    answer = ask(rig.state_directory / "gateway.sock", "identity")
    assert answer["state"] == "unreachable"
    assert ask(rig.state_directory / "gateway.sock", "renew-identity") == {}
    goes_on(rig, "motor")
    assert metric(rig, "sluice_identity_valid") == 0
    shown = gateway_command("status", "--config", str(rig.gateway_file)).stdout
    assert "identity: unreachable, no certificate" in shown
    settle(rig)


def test_a_broker_for_certificates_is_not_tried_without_one_and_records_wait(site: Site) -> None:
    rig = site(gateway={"identity": {"url": "https://127.0.0.1:9", "fingerprint": "ab" * 32}})
    rig.gateway_settings["cloud"]["brokers"] = [{"url": f"mqtts://127.0.0.1:{rig.ports.broker}", "identity": True}]
    rig.write()
    rig.start()
    eventually(lambda: status_of(rig)["cloud"]["state"] == "waiting", "the link waits")
    assert "waiting for the identity" in status_of(rig)["cloud"]["reason"]
    waits(rig, 20)
    assert tally_of(rig).committed == 0
    assert len(logged(rig, "mqtt_waits_for_identity")) == 1
    assert GATEWAY_ID in gateway_command("status", "--config", str(rig.gateway_file)).stdout
    rig.gateway.stop()
