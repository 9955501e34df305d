"""A provisioned device watches, tells the cloud, and loses nothing when the link or the power goes."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from hil.rig import models
from hil.rig.device import GATEWAY
from hil.rig.rig import Rig
from hil.tests.test_boot import listening

pytestmark = [pytest.mark.hil, pytest.mark.timeout(3600)]

LISTENING_WHEN_PROVISIONED: frozenset[str] = frozenset()
"""Without a key for SSH and without leaf sensors: nothing but loopback."""


@pytest.mark.lg_feature("stick")
def test_a_claim_on_a_stick_makes_the_device_a_gateway_of_its_fleet(rig: Rig) -> None:
    rig.reach("running")
    devices = {each["gateway"]: each for each in rig.cloud.ask("identity", "devices")}
    assert rig.gateway in devices
    identity = rig.device.gateway("identity", "status")
    assert identity["state"] == "valid"
    assert identity["spiffe_id"].endswith(f"/{rig.gateway}")


@pytest.mark.lg_feature("sensor")
def test_an_anomaly_of_the_sensor_is_committed_in_the_bridge(rig: Rig) -> None:
    rig.reach("running")
    assert not [each for each in rig.cloud.events(rig.gateway, "temperature") if each["label"] == "anomaly"]
    rig.shift_sensor(25.0)
    try:
        event = rig.event("temperature", "anomaly", seconds=300.0)
    finally:
        rig.shift_sensor(0.0)
    assert event["gateway"] == rig.gateway


@pytest.mark.lg_feature(["camera", "camera-scene"])
def test_what_the_camera_sees_is_committed_in_the_bridge(rig: Rig) -> None:
    rig.reach("running")
    assert not rig.cloud.events(rig.gateway, "light")
    rig.show("bright")
    event = rig.event("light", models.LABEL, seconds=300.0)
    assert event["gateway"] == rig.gateway


def test_a_provisioned_device_listens_to_nothing_but_what_the_documentation_lists(rig: Rig) -> None:
    rig.reach("running")
    assert listening(rig) == LISTENING_WHEN_PROVISIONED


@pytest.mark.lg_feature("virtual")
def test_ssh_is_there_once_a_key_was_provisioned_and_for_that_key_alone(rig: Rig, tmp_path: Path) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("needs ssh: apt-get install openssh-client")
    rig.reach("running")
    rig.changed()
    assert rig.device.attempt("systemctl is-active ssh.service")[0] != "active"
    for name in ("known", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    rig.device.put((tmp_path / "known.pub").read_bytes(), "/data/etc-sluice/ssh/authorized_keys", mode="644")
    rig.device.run("systemctl restart sluice-activate.service", seconds=180.0)
    rig.device.eventually("systemctl is-active -q ssh.service", "SSH is there", seconds=300.0)
    assert listening(rig) == {"tcp/22"}

    def login(key: str) -> subprocess.CompletedProcess[str]:
        words = [
            "ssh",
            "-F",
            "none",
            "-p",
            str(rig.machine.ssh_port),
            "-i",
            str(tmp_path / key),
            "-o",
            "IdentitiesOnly=yes",
        ]
        words += ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path / 'hosts'}"]
        words += ["-o", "ConnectTimeout=120", "root@127.0.0.1", "cat /etc/machine-id"]
        # With nothing to ask anybody: a password would be asked for here.
        return subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, start_new_session=True
        )

    assert login("known").stdout.strip() == rig.device.run("cat /etc/machine-id").strip()
    refused = login("stranger")
    assert refused.returncode == 255
    assert "Permission denied (publickey)" in refused.stderr


def test_a_support_bundle_has_all_that_it_promises_and_not_the_claim(rig: Rig, tmp_path: Path) -> None:
    rig.reach("running")
    file = "/run/rig-support.tar.gz"
    rig.device.run(f"{GATEWAY} support-bundle --output {file}", seconds=900.0)
    assert rig.device.run(f"stat -c %a {file}") == "600"
    packed = tmp_path / "support.tar.gz"
    packed.write_bytes(bytes.fromhex(rig.device.run(f"od -An -v -tx1 {file} | tr -d ' \\n'", seconds=300.0)))
    with tarfile.open(packed) as archive:
        texts = {member.name: archive.extractfile(member) for member in archive.getmembers() if member.isfile()}
        whole = {name.partition("/")[2] or name: stream.read() for name, stream in texts.items() if stream is not None}
    listed = {each["name"]: each for each in json.loads(whole["manifest.json"])["files"]}
    for name in (
        "status.json",
        "doctor.json",
        "sbom.cdx.json",
        "logs/services.txt",
        "logs/kernel.txt",
        "system/slots.json",
    ):
        assert listed[name]["missing"] == ""
        assert listed[name]["size_bytes"] > 200, name
    assert b"sluice1." not in b"".join(whole.values())


def test_the_gateway_does_not_run_as_root(rig: Rig) -> None:
    rig.reach("running")
    process = rig.device.run("systemctl show -P MainPID gateway.service").strip()
    assert rig.device.run(f"stat -c %U /proc/{process}") == "sluice"


@pytest.mark.lg_feature(["camera", "camera-scene"])
def test_what_happens_while_the_link_is_cut_arrives_when_it_is_back(rig: Rig) -> None:
    rig.reach("running")
    rig.cut_cloud()
    rig.show("bright")
    rig.until(
        lambda: rig.device.pipelines().get("light", {}).get("open_events", 0) > 0, "the device sees it", seconds=120.0
    )
    assert not rig.cloud.events(rig.gateway, "light")
    rig.mend_cloud()
    rig.event("light", models.LABEL, seconds=300.0)


@pytest.mark.lg_feature("power-cut")
def test_the_device_comes_back_by_itself_after_a_power_cut(rig: Rig) -> None:
    rig.reach("running")
    before = {(each["epoch"], each["seq"]) for each in rig.cloud.ask("records", "--limit", "1000") if "seq" in each}
    rig.cut_power()
    rig.power_on()
    rig.device.eventually("systemctl is-active -q gateway.service", "the gateway runs", seconds=600.0)
    rig.until(lambda: len(rig.cloud.ask("records", "--limit", "1000")) > len(before), "records go on", seconds=300.0)
    after = {(each["epoch"], each["seq"]) for each in rig.cloud.ask("records", "--limit", "1000") if "seq" in each}
    assert before <= after
    assert rig.device.failed_units() == []
