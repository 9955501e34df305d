"""The bridge writes claims that devices take: as files, and as pictures."""

import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import segno
import yaml
from click.testing import CliRunner, Result

from cloud_bridge.cli import main
from cloud_bridge.identity import claimfile
from gateway.appliance.claim import read_claim
from gateway.appliance.pictures import codes_in
from gateway.appliance.plan import BASE, plan
from gateway.wire.claimfile import from_qr
from gateway.wire.identity import claim_code

BROKER = "mqtts://broker.example:8883"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "bridge.yaml"
    file.write_text(
        f"store: {{url: 'sqlite:///{tmp_path}/bridge.db'}}\n"
        "identity: {trust_domain: sluice.test, directory: id, names: [bridge.example]}\n"
    )
    return file


def create(file: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["identity", "token", "create", "dock-7", *words, "--config", str(file)])


def tokens(file: Path) -> list[Any]:
    listed = CliRunner().invoke(main, ["identity", "token", "list", "--json", "--config", str(file)])
    return [json.loads(line) for line in listed.stdout.split("\n") if line]


def test_a_device_can_use_the_file_that_the_bridge_writes(file: Path, tmp_path: Path) -> None:
    claim_file = tmp_path / "sluice-claim.yaml"
    made = create(file, "--broker", BROKER, "--claim-file", str(claim_file), "--label", "site=berlin", "--json")
    assert made.exit_code == 0, made.output
    assert claim_file.stat().st_mode & 0o777 == 0o600
    claim = read_claim(claim_file.read_bytes(), "sluice-claim.yaml")
    printed = json.loads(made.stdout)
    assert claim.code == printed["code"]
    assert claim.identity == "https://bridge.example:8471"
    assert claim.labels == {"site": "berlin"}
    assert claim.ca is not None  # and it has the fingerprint of the code, or the device would not have taken it
    assert plan(claim, BASE, origin="stick", image="", now_ns=0)
    listed = CliRunner().invoke(main, ["fleet", "list", "--json", "--config", str(file)])
    assert '"site":"berlin"' in listed.stdout.replace(" ", "") or listed.stdout == ""


@pytest.mark.parametrize("form", ["png", "svg", "-"])
def test_a_camera_can_use_the_picture(file: Path, tmp_path: Path, form: str) -> None:
    picture = tmp_path / f"claim.{form}"
    made = create(file, "--broker", BROKER, "--qr", "-" if form == "-" else str(picture))
    assert made.exit_code == 0, made.output
    if form == "-":
        assert "▀" in made.output or "█" in made.output
        assert "sluice1." not in made.stdout
        return
    assert picture.stat().st_mode & 0o777 == 0o600
    if form == "svg":
        assert "<svg" in picture.read_text()
        return
    (text,) = codes_in(np.asarray(cv2.imread(str(picture)), np.uint8))
    claim = from_qr(text)
    assert claim is not None
    code = claim_code(claim.code or "")
    assert code is not None
    assert code.text() in made.stdout


def test_a_template_serves_a_fleet(file: Path, tmp_path: Path) -> None:
    template = tmp_path / "fleet.yaml"
    template.write_text(
        yaml.safe_dump(
            {
                "brokers": [BROKER],
                "ntp": ["ntp.plant.example"],
                "labels": {"line": "3"},
                "config": {
                    "sources": {"machine": {"type": "health"}},
                    "pipelines": {"own": {"source": "machine", "model": "process-anomaly"}},
                },
            }
        )
    )
    claim_file = tmp_path / "claim.yaml"
    made = create(file, "--with", str(template), "--label", "site=berlin", "--claim-file", str(claim_file))
    assert made.exit_code == 0, made.output
    claim = read_claim(claim_file.read_bytes(), "c")
    assert claim.ntp == ["ntp.plant.example"]
    assert claim.labels == {"line": "3", "site": "berlin"}
    assert list(claim.config["pipelines"]) == ["own"]


def test_a_reset_code_is_shown_once_and_only_its_digest_travels(file: Path, tmp_path: Path) -> None:
    claim_file = tmp_path / "claim.yaml"
    made = create(file, "--broker", BROKER, "--claim-file", str(claim_file), "--reset-code", "--json")
    code = json.loads(made.stdout)["reset_code"]
    text = claim_file.read_text()
    assert code not in text
    assert "reset_digest" in text


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("--broker", BROKER), 2, "give --claim-file FILE or --qr FILE"),
        (("--claim-file", "{tmp}/c.yaml"), 1, "give --broker mqtts://broker.example:8883, or a template"),
        (("--claim-file", "{tmp}/c.yaml", "--broker", BROKER, "--label", "Site"), 1, "is no label"),
        (("--qr", "claim.jpg", "--broker", BROKER), 1, "name a file with .svg or .png"),
        (("--claim-file", "{tmp}/bridge.yaml", "--broker", BROKER), 1, "is there already"),
        (("--qr", "{tmp}/c.png", "--with", "{tmp}/large.yaml"), 1, "leave out ssh, or carry it as a file"),
        (("--claim-file", "{tmp}/c.yaml", "--with", "{tmp}/own.yaml"), 1, "gateway belongs to one device"),
        (("--claim-file", "{tmp}/c.yaml", "--with", "{tmp}/wrong.yaml"), 1, "this makes no claim"),
    ],
)
def test_what_cannot_be_carried_leaves_no_claim_behind(
    file: Path, tmp_path: Path, words: tuple[str, ...], status: int, told: str
) -> None:
    keys = [f"ssh-ed25519 {hashlib.sha512(bytes([n])).hexdigest()} a" for n in range(30)]
    (tmp_path / "large.yaml").write_text(yaml.safe_dump({"brokers": [BROKER], "ssh": keys}))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"brokers": [BROKER], "gateway": "dock-8"}))
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({"brokers": [BROKER], "colour": "red"}))
    made = create(file, *(word.format(tmp=tmp_path) for word in words))
    assert (made.exit_code, told in made.output) == (status, True), made.output
    assert tokens(file) == []


def test_without_a_name_for_itself_the_bridge_asks_for_one(tmp_path: Path) -> None:
    file = tmp_path / "bridge.yaml"
    file.write_text(
        f"store: {{url: 'sqlite:///{tmp_path}/bridge.db'}}\nidentity: {{trust_domain: sluice.test, directory: id}}\n"
    )
    words = ("--broker", BROKER, "--claim-file", str(tmp_path / "c.yaml"))
    assert "set identity.names, or give --identity-url" in create(file, *words).output
    assert create(file, *words, "--identity-url", "https://10.0.2.2:8471").exit_code == 0


def test_the_root_of_the_bridges_own_registry_travels_in_the_file(file: Path, tmp_path: Path) -> None:
    file.write_text(file.read_text() + f"registry: {{url: '{tmp_path}/registry', keys: '{tmp_path}/keys'}}\n")
    begun = CliRunner().invoke(
        main, ["registry", "init", "--root-directory", str(tmp_path / "root"), "--config", str(file)]
    )
    assert begun.exit_code == 0, begun.output
    claim_file = tmp_path / "claim.yaml"
    made = create(
        file, "--broker", BROKER, "--claim-file", str(claim_file), "--registry-url", "https://registry.example:8443"
    )
    assert made.exit_code == 0, made.output
    claim = read_claim(claim_file.read_bytes(), "claim.yaml")
    assert claim.registry == "https://registry.example:8443"
    assert claim.registry_root is not None
    assert json.loads(claim.registry_root)["signed"]["_type"] == "root"


def code_and_reading(number: int, *, chosen: bool) -> tuple[str, list[str]]:
    """Return a text as long as a claim's, and what a device reads in its code."""
    text = f"sluice1?g=dock-{number}&b={BROKER}&c=" + random.Random(number).randbytes(70).hex()
    code = claimfile._readable(text) if chosen else segno.make(text, error="m", micro=False, boost_error=False)
    out = io.BytesIO()
    code.save(out, kind="png", scale=8, border=4)
    image = cv2.imdecode(np.frombuffer(out.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    return text, codes_in(np.asarray(image, np.uint8))


def test_codes_are_drawn_so_that_devices_read_them() -> None:
    for number in range(12):
        text, read = code_and_reading(number, chosen=True)
        assert read == [text]


def test_the_control_of_codes_drawn_as_usual_some_are_not_read() -> None:
    readings = (code_and_reading(number, chosen=False) for number in range(60))
    assert any(read != [text] for text, read in readings)
