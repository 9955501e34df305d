"""A device from a claim file to its fleet: what the bridge wrote it takes, enrols with, and is judged by."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from gateway.appliance.places import Places
from gateway.cli import main
from gateway.commands.supportbundle import command as support_bundle
from hil.loopback.rig import GATEWAY_ID, Rig, eventually
from tests.e2e.flow import arrives, settle
from tests.e2e.security.conftest import Secured
from tests.e2e.security.steps import happened, identity_of, runs, site_of


def on_device(root: Path, *words: str) -> Result:
    command, *rest = words
    return CliRunner().invoke(main, ["appliance", command, "--root", str(root), *rest])


def unboxed(rig: Rig, root: Path) -> Places:
    """A device as it comes: the image's part of gateway.yaml, no claim, the state directory of the rig."""
    site = site_of(rig)
    places = Places.below(root)
    for directory in (places.system, places.settings, places.esp):
        directory.mkdir(parents=True)
    places.state.symlink_to(rig.state_directory)
    base = yaml.safe_load(site.gateway_file.read_text())
    base["gateway"].pop("id")
    for own in ("identity", "cloud"):
        base.pop(own)
    places.base_config.write_text(yaml.safe_dump(base))
    places.release.write_text('{"version": "2026.01"}')
    return places


@pytest.mark.timeout(300)
def test_a_device_goes_from_a_claim_file_to_records_in_the_bridge(secured: Secured, tmp_path: Path) -> None:
    rig = secured()
    rig.prepare()
    site = site_of(rig)
    site.claim.unlink()
    places = unboxed(rig, tmp_path / "device")
    site.in_cloud(
        *("identity", "token", "create", GATEWAY_ID, "--claim-file", str(places.esp / "sluice-claim.yaml")),
        *("--identity-url", f"https://127.0.0.1:{site.ports.identity}"),
        *("--broker", f"mqtts://127.0.0.1:{rig.ports.broker}", "--label", "site=berlin"),
    )
    code = yaml.safe_load((places.esp / "sluice-claim.yaml").read_text())["code"]
    before = on_device(tmp_path / "device", "health", "--soak", "0", "--json")
    assert json.loads(before.stdout)["verdict"] == "unprovisioned"

    taken = on_device(tmp_path / "device", "provision", "--scan", "--no-cameras")
    assert taken.exit_code == 0, taken.output
    assert not (places.esp / "sluice-claim.yaml").exists()
    site.gateway_file.write_text(places.config.read_text())

    rig.start_broker()
    rig.start_bridge()
    rig.start_gateway()
    eventually(lambda: identity_of(rig)["state"] == "valid", "the device has enrolled with its claim", 40.0)
    assert happened(rig)["enrolled"]["gateway"] == GATEWAY_ID
    assert "site=berlin" in site.in_cloud("fleet", "label", GATEWAY_ID, "ring=canary")
    for pipeline in ("motor", "machine"):
        runs(rig, pipeline)
    arrives(rig)

    # The code is worth nothing any more, and nothing on the device has kept it.
    kept = [file for file in places.settings.rglob("*") if file.is_file() and code.encode() in file.read_bytes()]
    kept += [file for file in rig.state_directory.rglob("*") if file.is_file() and code.encode() in file.read_bytes()]
    assert kept == []

    judged = on_device(tmp_path / "device", "health", "--soak", "4", "--json")
    assert judged.exit_code == 0, judged.output
    report = json.loads(judged.stdout)
    assert (report["verdict"], report["reasons"]) == ("healthy", [])
    assert set(report["was"]["progressing"]) >= {"motor", "machine"}
    assert report["was"]["identity_valid"]

    bundle = tmp_path / "bundle.tar.gz"
    words = ["--no-doctor", "--config", str(places.config), "--output", str(bundle), "--json"]
    made = CliRunner().invoke(support_bundle, words)
    assert made.exit_code == 0, made.output
    there = {each["name"] for each in json.loads(made.stdout)["manifest"]["files"] if not each.get("missing")}
    assert {"status.json", "identity.json", "outbox.json", "gateway.yaml"} <= there
    settle(rig)

    # An image under which the gateway does not stay up is not kept.
    rig.gateway.kill()
    judged = on_device(tmp_path / "device", "health", "--soak", "1", "--start-within", "1", "--json")
    assert judged.exit_code == 1
    assert "the gateway does not answer" in json.loads(judged.stdout)["reasons"][0]
