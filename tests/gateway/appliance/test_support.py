"""A support bundle tells much, has bounds, and holds no secret and no record."""

import dataclasses
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import msgspec
import pytest
import yaml

from gateway.appliance.places import Places
from gateway.appliance.scrub import REMOVED, Scrubber, secrets_of, without_secrets
from gateway.appliance.support import MAX_PART_BYTES, Manifest, Sources, collect, output_of
from gateway.config import Outbox as OutboxSettings
from gateway.configload import read
from gateway.doctor import Diagnosis
from gateway.osupdate.journal import Book, Event, Journal
from gateway.outbox.store import Outbox
from gateway.values import Entry
from gateway.wire.messages import Notice
from tests.gateway.appliance.claims import CODE, NOW_NS, device

REPO = Path(__file__).parents[3]
CANARIES = {
    "camera": "canary-camera-7f3a",
    "broker": "canary-broker-91bc",
    "token": "canary-metrics-token-11aa",
    "claim": CODE,
    "key": "-----BEGIN EC PRIVATE KEY-----\nY2FuYXJ5LXByaXZhdGUta2V5\n-----END EC PRIVATE KEY-----",
    "inline": "canary-inline-pa55",
    "url": "canary-url-pa55",
    "vault": "canary-vault-blob-5e5e",
    "record": "canary-record-0042",
    "logged": "canary-logged-77",
    "reset": "cafe" * 16,
}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A provisioned device with a secret wherever one can be."""
    places = device(tmp_path)
    secrets = places.settings / "secrets"
    secrets.mkdir()
    (secrets / "dock-camera").write_text(CANARIES["camera"] + "\n")
    (secrets / "broker").write_text(CANARIES["broker"])
    (secrets / "metrics").write_text(CANARIES["token"])
    (secrets / "broker.key").write_text(CANARIES["key"])
    (places.state / "identity").mkdir()
    (places.state / "identity/claim").write_text(CODE + "\n")
    (places.state / "identity/identity.json").write_text('{"enrolled": true}')
    (places.state / "vault").mkdir()
    (places.state / "vault/software.key").write_text(CANARIES["vault"])
    places.provisioned.write_text(
        msgspec.json.encode({"gateway": "dock-7", "reset_digest": CANARIES["reset"]}).decode()
    )
    config = {
        "gateway": {"id": "dock-7", "state_directory": str(places.state), "runtime_directory": str(places.runtime)},
        "vault": {"level": "software"},
        "sources": {
            "dock": {
                "type": "camera",
                "device": "rtsp://192.0.2.9/1",
                "username": "viewer",
                "password_file": "secrets/dock-camera",
            }
        },
        "pipelines": {},
        "metrics": {"token_file": "secrets/metrics"},
        "cloud": {
            "brokers": [
                {"url": "mqtts://b.example:8883", "username": "u", "password_file": "secrets/broker"},
            ]
        },
    }
    places.config.write_text(f"# the password is {CANARIES['inline']}\n{yaml.safe_dump(config)}")
    outbox = Outbox.open(places.state / "outbox.db", OutboxSettings())
    notice = Notice(code="x", severity="info", detail=CANARIES["record"], at="")
    outbox.put([Entry("event", "notice", notice, NOW_NS)])
    outbox.close()
    return places


def log_of(command: Sequence[str]) -> str:
    """What a careless program has logged."""
    if command[0] != "journalctl":
        raise OSError(f"{command[0]} is not installed")
    return "\n".join(
        [
            f"connecting with {CANARIES['camera']}",
            f"rtsp://viewer:{CANARIES['url']}@192.0.2.9/1",
            f"camera http://192.0.2.9/s.cgi?u=viewer&p={CANARIES['url']} does not answer",
            f'{{"password": "{CANARIES["logged"]}"}}',
            f"Authorization: Bearer {CANARIES['logged']}",
            f"claim {CODE} taken",
            CANARIES["key"],
            f"token={CANARIES['logged']}",
            "pipeline_degraded pipeline=dock",
        ]
    )


def checks() -> Iterator[Diagnosis]:
    yield Diagnosis("clock", "ok", f"fine, and {CANARIES['broker']}")


def sources(places: Places) -> Sources:
    return Sources(
        places=places, config_file=places.config, examine=checks, now_ns=lambda: NOW_NS, run=log_of, proc=Path("/proc")
    )


def opened(places: Places, made: Sources | None = None) -> tuple[Manifest, dict[str, str]]:
    out = io.BytesIO()
    manifest = collect(made or sources(places), out)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        found = {}
        for member in archive.getmembers():
            content = archive.extractfile(member)
            assert content is not None
            found[member.name.partition("/")[2]] = content.read().decode()
    return manifest, found


def test_no_secret_and_no_record_enters_a_bundle(places: Places) -> None:
    manifest, files = opened(places)
    everything = "\n".join([*files, *files.values()])
    for name, canary in CANARIES.items():
        for line in canary.splitlines():
            if not line.startswith("-----"):
                assert line not in everything, name
    assert manifest.secrets_removed >= 7


def test_what_became_of_updates_of_the_system_is_in_it_also_while_no_gateway_answers(places: Places) -> None:
    journal = Journal(places.state)
    journal.change(noted("reverted", "health", f"the camera {CANARIES['camera']} does not answer"))
    _, files = opened(places)
    (event,) = json.loads(files["state/os-journal.json"])["history"]
    assert (event["what"], event["code"]) == ("reverted", "health")
    assert event["detail"] == f"the camera {REMOVED} does not answer"
    assert "os.json" in {entry.name for entry in opened(places)[0].files}, "and what a gateway that runs says of it"


def noted(what: str, code: str, detail: str) -> Callable[[Book], Book]:
    return lambda book: book.noting(Event(at="", what=what, code=code, detail=detail))


def test_the_logs_are_those_of_every_unit_that_the_image_brings_and_of_what_opens_its_disks(places: Places) -> None:
    """Above all of those that decide about a boot: when a device is not what it should be, they have said why."""
    commands: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> str:
        commands.append(command)
        return log_of(command)

    opened(places, dataclasses.replace(sources(places), run=run))
    asked = [word.partition("=")[2] for command in commands for word in command if word.startswith("--unit=")]
    units = [file.name for file in (REPO / "image/overlay/usr/lib/systemd/system").glob("*.service")]
    units += [file.name for file in (REPO / "gateway/units").glob("sluice-*.service")]
    assert len(units) > 10
    for unit in (*units, "gateway.service", "systemd-cryptsetup@data.service", "systemd-repart.service"):
        assert any(fnmatchcase(unit, pattern) for pattern in asked), unit


def test_json_stays_json_where_a_number_has_the_name_of_a_secret() -> None:
    for text in ('{"token":7,"fencing_token": 8}', '{"a": [{"token": 1.5e3}]}', '{\n  "pass": 1,\n  "token": null\n}'):
        cleaned = Scrubber([]).clean(text)
        assert REMOVED in cleaned
        json.loads(cleaned)
    assert Scrubber([]).clean('"password": ab<cd, next') == f'"password": {REMOVED}, next'


def test_without_the_scrubber_they_would(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same bundle with nothing taken out."""
    monkeypatch.setattr(Scrubber, "clean", lambda _self, text: text)
    everything = "\n".join(opened(places)[1].values())
    for name in ("camera", "broker", "url", "logged", "claim"):
        assert CANARIES[name] in everything, name


def test_it_tells_what_a_person_needs(places: Places) -> None:
    manifest, files = opened(places)
    assert "pipeline_degraded pipeline=dock" in files["logs/services.txt"]
    assert yaml.safe_load(files["gateway.yaml"])["sources"]["dock"]["password_file"] == "secrets/dock-camera"
    assert msgspec.json.decode(files["outbox.json"])["classes"]["event"]["rows"] == 1
    assert msgspec.json.decode(files["doctor.json"])[0]["check"] == "clock"
    assert msgspec.json.decode(files["release.json"])["version"] == "2026.01"
    assert msgspec.json.decode(files["about.json"])["boot_id"]
    assert (manifest.gateway, manifest.image) == ("dock-7", "2026.01")
    assert msgspec.json.decode(files["manifest.json"], type=Manifest) == manifest


def test_what_cannot_be_had_is_named_with_the_reason(places: Places) -> None:
    manifest, files = opened(places)
    missing = {entry.name: entry.missing for entry in manifest.files if entry.missing}
    assert "no gateway is running" in missing["status.json"]
    assert missing["system/slots.json"] == "rauc is not installed"
    assert "status.json" not in files


def test_a_device_without_a_usable_configuration_has_a_bundle_too(places: Places) -> None:
    places.config.write_text(f"a: [\npassword: {CANARIES['inline']}\n")
    manifest, files = opened(places)
    assert manifest.gateway == "unprovisioned"
    assert CANARIES["inline"] not in "".join(files.values())
    places.config.unlink()
    assert "logs/services.txt" in opened(places)[1]


def test_a_secret_that_was_written_into_the_configuration_is_taken_out(places: Places) -> None:
    with places.config.open("a") as file:
        file.write(f"api_key: {CANARIES['inline']}\nextra:\n  passwords: [{CANARIES['inline']}]\n")
    _, files = opened(places)
    assert yaml.safe_load(files["gateway.yaml"])["api_key"] == REMOVED
    assert ": error: api_key: " in files["gateway.yaml"]
    assert CANARIES["inline"] not in "".join(files.values())


def test_a_log_without_end_is_cut_to_its_end(places: Places) -> None:
    made = sources(places)
    long = "x" * (MAX_PART_BYTES + 10) + "the last word"
    made = Sources(
        places=places,
        config_file=places.config,
        examine=None,
        now_ns=made.now_ns,
        run=lambda command: long if command[0] == "journalctl" else "",
    )
    manifest, files = opened(places, made)
    (entry,) = (entry for entry in manifest.files if entry.name == "logs/services.txt")
    assert entry.cut
    assert entry.size_bytes == MAX_PART_BYTES
    assert files["logs/services.txt"].endswith("the last word")


def test_every_file_that_holds_a_secret_is_known(places: Places) -> None:
    config = read(places.config, require_files=False).config
    known = set(secrets_of(config, places.settings, places.state))
    assert {CANARIES[name] for name in ("camera", "broker", "token", "claim")} <= known


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("mqtts://user:pass@host", f"mqtts://{REMOVED}@host"),
        ('{"password": "hunter2"}', f'{{"password": "{REMOVED}"}}'),
        ("token='x y'", f"token='{REMOVED}'"),
        ("password_file: secrets/dock", "password_file: secrets/dock"),
        ("Authorization: Basic dTpw", f"Authorization: {REMOVED}"),
        ("nothing here", "nothing here"),
    ],
)
def test_what_has_the_form_of_a_secret_goes(text: str, clean: str) -> None:
    assert Scrubber([]).clean(text) == clean


def test_a_short_secret_does_not_eat_every_word() -> None:
    assert Scrubber(["a", "the"]).clean("a cat and the dog") == "a cat and the dog"


def test_values_named_like_secrets_go_and_paths_stay() -> None:
    tree: Any = {"password": "x", "password_file": "secrets/x", "list": [{"token": "y", "host": "z"}], "secret": None}
    assert without_secrets(tree) == {
        "password": REMOVED,
        "password_file": "secrets/x",
        "list": [{"token": REMOVED, "host": "z"}],
        "secret": None,
    }


def test_commands_answer_or_say_why_not() -> None:
    assert output_of(["echo", "yes"]) == "yes\n"
    with pytest.raises(OSError, match="oh"):
        output_of(["sh", "-c", "echo oh >&2; exit 1"])
    with pytest.raises(OSError, match=r"^no-such-program is not installed here$"):
        output_of(["no-such-program"])


@pytest.mark.parametrize(
    "secret", ['pa"ss\\word1', "pässwörd99", "top/secret/1", "o'clock99", "p@ss wörd?&99", "ta\tb-9"]
)
def test_a_secret_is_found_however_a_program_has_written_it_down(secret: str) -> None:
    said = {"last_error": f"login with {secret} failed"}
    line = json.dumps({"event": json.dumps(said)})
    texts = [
        json.dumps(said),
        json.dumps(said, ensure_ascii=False),
        line,
        msgspec.json.encode(said).decode(),
        yaml.safe_dump(said, allow_unicode=True),
        repr(said),
        f"GET /?key={quote(secret, safe='')} and rtsp://u:{quote(secret)}@camera/ and {quote_plus(secret)}",
    ]
    scrubber = Scrubber([secret])
    for text in texts:
        cleaned = scrubber.clean(text)
        assert REMOVED in cleaned, text
        for part in (part for part in re.split(r"[^0-9A-Za-z]+", secret) if len(part) > 3):
            assert part not in cleaned, text
