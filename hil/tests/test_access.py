"""What a person gets of a device: a login, where a key for it was provisioned, and a bundle for whoever supports it."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from hil.rig.device import GATEWAY
from hil.rig.documented import reachable
from hil.rig.rig import Rig
from hil.tests.test_boot import listening

pytestmark = [pytest.mark.hil, pytest.mark.timeout(3600)]


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
    assert "tcp/22" in listening(rig) <= reachable(with_key=True)

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
    packed.write_bytes(rig.device.get(file))
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
