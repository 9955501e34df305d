"""The command line of releases, as an operator uses it: the real checks, the real sealing, one release that ships."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cloud_bridge.cli import main
from cloud_bridge.commands.registry import ends
from cloud_bridge.config import Store
from cloud_bridge.identity.database import open_database
from cloud_bridge.identity.devices import Device, put_device, revoke_device
from cloud_bridge.store.sqlite import SqliteStore
from gateway.wire.manifest import MANIFEST_FILE, read_manifest
from gateway.wire.messages import ModelRef
from tests.cloud_bridge.registry.test_workshop import SHIPPED
from tests.simulators.releases import write_release
from tests.simulators.reports import report


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "bridge.yaml"
    file.write_text(
        f"store: {{url: 'sqlite:///{tmp_path}/bridge.db'}}\nidentity: {{trust_domain: sluice.test, directory: id}}\n"
        "registry: {url: releases, keys: keys}\n"
    )
    return file


def run(file: Path, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--config", str(file)])


def answer(file: Path, *words: str, status: int = 0) -> Any:
    result = run(file, *words, "--json")
    assert result.exit_code == status, result.output
    lines = [json.loads(line) for line in result.stdout.split("\n") if line]
    return lines[0] if len(lines) == 1 else lines


def test_a_release_goes_from_a_directory_to_the_fleet(file: Path) -> None:
    begun = answer(file, "registry", "init")
    assert (file.parent / "keys" / "root.json").is_file()
    assert [key["role"] for key in begun["keys"]] == ["root"] * 3 + ["timestamp", "snapshot", "targets"]
    assert run(file, "registry", "init").exit_code == 1
    published = answer(file, "model", "publish", str(SHIPPED), "--candidate")
    assert (published["published"], published["state"], published["token"]) == (True, "candidate", 1)
    assert published["examined"][0]["golden"] == 2
    assert {one["kind"] for one in published["files"]} == {"artefact", "golden", "manifest"}
    assert answer(file, "model", "approve", "process-anomaly@1.0.0", "--who", "mara")["approved_by"] == "mara"
    assert answer(file, "model", "list")["name"] == "process-anomaly"
    shown = answer(file, "model", "show", "process-anomaly")
    assert shown["manifest"]["deployment_token"] == 1
    status = answer(file, "registry", "status")
    assert (status["releases"], status["roles"]["targets"]["version"]) == (1, 2)
    out = file.parent / "stick"
    assert run(file, "registry", "export", str(out)).exit_code == 0
    assert (out / "metadata" / "timestamp.json").is_file()
    assert json.loads(run(file, "registry", "root").stdout)["signed"]["version"] == 1
    clear = Path(answer(file, "model", "extract", "process-anomaly", str(file.parent / "clear"))["directory"])
    assert json.loads((clear / MANIFEST_FILE).read_bytes())["deployment_token"] == 1, "as it is signed"
    assert {each.name for each in clear.iterdir()} >= {
        one.file for one in read_manifest((clear / MANIFEST_FILE).read_bytes()).artefacts
    }
    assert "is there already" in run(file, "model", "extract", "process-anomaly", str(file.parent / "clear")).output
    assert "no directory is named" in run(file, "model", "extract", "process-anomaly", "").output
    assert "name another directory" in run(file, "model", "extract", "process-anomaly", str(out / ("d" * 300))).output
    yanked = answer(file, "model", "yank", "process-anomaly@1.0.0", "--why", "ghosts", "--revoke-key")
    assert (yanked["state"], yanked["yanked_why"]) == ("yanked", "ghosts")
    assert "is taken back" in run(file, "model", "extract", "process-anomaly@1.0.0", str(out)).output
    kinds = {event["kind"] for event in answer(file, "identity", "events")}
    assert {
        "registry-initialised",
        "release-published",
        "release-approved",
        "release-extracted",
        "release-yanked",
    } <= kinds


def test_the_status_says_how_many_of_which_keys_must_sign_and_when_what_they_signed_ends(file: Path) -> None:
    answer(file, "registry", "init", "--root-keys", "3", "--threshold", "2")
    (gone, *here) = sorted((file.parent / "keys" / "root").glob("*"))
    gone.unlink()
    shown = run(file, "registry", "status").stdout
    root = answer(file, "registry", "status")["roles"]["root"]
    (said,) = [line for line in shown.splitlines() if line.startswith("root:")]
    assert f"version 1 ends on {root['expires']}, in 729 days" in said
    assert said.endswith("the next one needs 2 signatures by any of these 3 keys, each counted once")
    keys = shown.splitlines()[shown.splitlines().index(said) + 1 :][:3]
    assert [line.split()[:2] for line in keys] == [["key", key["keyid"][:16]] for key in root["keys"]]
    assert sum("its private half is not on this machine" in line for line in keys) == 1
    assert sum(any(str(each) in line for each in here) for line in keys) == 2
    assert "1 signature by this key" in next(line for line in shown.splitlines() if line.startswith("timestamp:"))
    assert "Keys do not end; what they have signed does." in shown


@pytest.mark.parametrize(
    ("expires", "words"),
    [
        (datetime(2026, 1, 3, 1, tzinfo=UTC), "ends on 2026-01-03T01:00:00Z, in 2 days"),
        (datetime(2026, 1, 2, tzinfo=UTC), "ends on 2026-01-02T00:00:00Z, in 1 day"),
        (datetime(2026, 1, 1, 5, tzinfo=UTC), "ends on 2026-01-01T05:00:00Z, in less than a day"),
        (datetime(2025, 12, 31, tzinfo=UTC), "has ENDED on 2025-12-31T00:00:00Z"),
    ],
)
def test_when_something_signed_ends_is_said_in_days(expires: datetime, words: str) -> None:
    assert ends(expires, datetime(2026, 1, 1, tzinfo=UTC)) == words


def test_a_refusal_names_every_reason_with_its_remedy(file: Path, tmp_path: Path) -> None:
    answer(file, "registry", "init")
    made = write_release(tmp_path / "made", "detector", "1.0.0", b"no model at all")
    problems = answer(file, "model", "publish", str(made), status=1)["problems"]
    assert {problem["code"] for problem in problems} == {"no-quality", "no-golden", "does-not-run"}
    for problem in problems:
        assert problem["where"]
        assert problem["remedy"]
    told = run(file, "model", "publish", str(made))
    assert told.exit_code == 1
    assert "or --accept no-golden" in told.stderr
    assert answer(file, "model", "list") == []


def test_two_releases_are_compared(file: Path, tmp_path: Path) -> None:
    answer(file, "registry", "init")
    answer(file, "model", "publish", str(SHIPPED))
    text = (SHIPPED / "manifest.json").read_text().replace('"version": "1.0.0"', '"version": "1.0.1"')
    newer = tmp_path / "newer"
    newer.mkdir()
    for part in SHIPPED.iterdir():
        (newer / part.name).write_bytes(part.read_bytes())
    (newer / "manifest.json").write_text(text.replace('"summary": "', '"summary": "Better: '))
    answer(file, "model", "publish", str(newer))
    found = answer(file, "model", "diff", "process-anomaly@1.0.0", "process-anomaly")
    assert found["travel"] == {"cpu-int8": {"full": 0, "patch": 0}}, "the weights are the same"
    assert list(found["manifest"]) == ["summary"]


def shipped_as(place: Path, version: str) -> Path:
    """Copy the release that ships, under another version."""
    copied = Path(shutil.copytree(SHIPPED, place / version))
    manifest = copied / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "1.0.0"', f'"version": "{version}"'))
    return copied


def test_who_publishes_is_told_what_patches_are_from(file: Path, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "bridge.db")
    store.open()
    store.close()
    answer(file, "registry", "init")
    assert answer(file, "model", "publish", str(SHIPPED))["bases"] == []
    told = run(file, "model", "publish", str(shipped_as(tmp_path, "1.1.0"))).stdout
    assert "no device has said that it runs a release of process-anomaly" in told
    assert "a patch at most from the newest, 1.0.0" in told
    report(tmp_path, "gw-1", "motor", ModelRef(name="process-anomaly", version="1.0.0"))
    told = run(file, "model", "publish", str(shipped_as(tmp_path, "1.2.0"))).stdout
    assert "patches are from what the fleet says that it runs: 1.0.0 (1 pipeline)" in told
    published = answer(file, "model", "publish", str(shipped_as(tmp_path, "1.3.0")))
    assert published["bases"] == [{"version": "1.0.0", "pipelines": 1}]


def test_patches_are_from_nothing_that_only_a_revoked_device_has_run(file: Path, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "bridge.db")
    store.open()
    store.close()
    answer(file, "registry", "init")
    for gateway, version, release in (("gw-1", "1.0.0", SHIPPED), ("gw-2", "1.1.0", shipped_as(tmp_path, "1.1.0"))):
        answer(file, "model", "publish", str(release))
        report(tmp_path, gateway, "motor", ModelRef(name="process-anomaly", version=version))
    database = open_database(Store(url=f"sqlite:///{tmp_path}/bridge.db"), tmp_path / "id")
    with database.transaction() as tx:
        put_device(tx, Device("gw-1", "software", "", False, b"", b"", "", "", "", 1, 1, 1))
        revoke_device(tx, "gw-1", "stolen", 1)
    database.close()
    published = answer(file, "model", "publish", str(shipped_as(tmp_path, "1.2.0")))
    assert published["bases"] == [{"version": "1.1.0", "pipelines": 1}]


def test_without_the_section_the_command_says_what_is_missing(file: Path) -> None:
    file.write_text(file.read_text().replace("registry: {url: releases, keys: keys}\n", ""))
    result = run(file, "model", "list")
    assert (result.exit_code, "no section `registry`" in result.stderr) == (2, True)


def test_a_key_is_made_anywhere(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["registry", "keygen", str(tmp_path / "targets.pem")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "targets.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "targets.pem.pub").is_file()
    assert CliRunner().invoke(main, ["registry", "keygen", str(tmp_path / "targets.pem")]).exit_code == 1


def test_slips_of_the_hand_change_nothing(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(file, "registry", "init")
    answer(file, "model", "publish", str(SHIPPED))
    monkeypatch.chdir(tmp_path)
    for words in (
        ("registry", "export", ""),
        ("registry", "sign", "export", ""),
        ("registry", "refresh", "--take-older", ""),
        ("model", "show", ""),
        ("model", "show", "@"),
        ("model", "yank", "process-anomaly@1.0.0", "--why", " "),
        ("model", "publish", str(SHIPPED), "--accept", "nonsense"),
    ):
        assert run(file, *words).exit_code == 2, words
    assert not (tmp_path / "metadata").exists()
    assert "is approved already; nothing was changed" in run(file, "model", "approve", "process-anomaly").stdout
    assert "is taken back\n" in run(file, "model", "yank", "process-anomaly@1.0.0", "--why", "ghosts").stdout
    again = run(file, "model", "yank", "process-anomaly@1.0.0", "--why", "others").stdout
    assert "was taken back already, on " in again
    assert again.endswith(": ghosts\n")


def test_a_mistake_in_a_release_is_told_with_its_place_and_a_remedy(file: Path, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "bridge.db")
    store.open()
    store.close()
    answer(file, "registry", "init")
    made = shipped_as(tmp_path, "1.1.0")
    manifest = made / MANIFEST_FILE
    document = manifest.read_text()
    for wrong, place in (("{\n", ", line 2: "), (document.replace('"process-anomaly"', '"Päng"', 1), "`$.name`")):
        manifest.write_text(wrong)
        told = run(file, "model", "publish", str(made))
        assert told.exit_code == 1
        assert str(manifest) in told.output
        assert place in told.output
        assert "docs/wire.md" in told.output
    manifest.write_text(document)
    artefact = made / read_manifest(manifest.read_bytes()).artefacts[0].file
    artefact.write_bytes(artefact.read_bytes() + b"more")
    told = run(file, "model", "publish", str(made))
    assert told.exit_code == 1
    assert str(artefact) in told.output, "the file of who publishes, not a copy of it"
    assert "keys/work" not in told.output
    assert "install the release again" not in told.output


def test_a_passphrase_is_as_long_as_one_can_be(tmp_path: Path) -> None:
    kept = tmp_path / "passphrase"
    key = tmp_path / "targets.pem"
    for length, status in ((1024, 2), (1023, 0)):
        kept.write_bytes(b"p" * length + b"\n")
        result = CliRunner().invoke(main, ["registry", "keygen", str(key), "--passphrase-file", str(kept)])
        assert result.exit_code == status, result.output
        assert key.exists() == (status == 0)
