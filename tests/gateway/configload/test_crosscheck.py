"""Mistakes between parts that are right in themselves, and against the disk."""

from pathlib import Path

import pytest

from gateway.configload import Problem, check

GOOD = """\
gateway: {id: dock-7}
vault: {level: software}
sources:
  cam: {type: camera, device: /dev/video0}
pipelines:
  door:
    source: cam
    model: person-detector
    zones: [{name: gate, polygon: [[0, 0], [1, 0], [1, 1]]}]
    rules: [{name: someone, zone: gate}]
cloud:
  brokers: [{url: "mqtts://bridge.example.net"}]
"""


def only(text: str, severity: str = "error", directory: Path | None = None) -> Problem:
    found = check(text, directory=directory)
    assert len(found) == 1, [problem.told("f") for problem in found]
    assert found[0].severity == severity
    return found[0]


def test_a_good_file_has_no_problems() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize("size", [0, 2 * 1024 * 1024])
def test_no_ballast_at_all_and_enough_of_it_are_accepted(size: int) -> None:
    assert check(f"{GOOD}outbox: {{ballast_bytes: {size}}}\n") == []


@pytest.mark.parametrize(
    ("old", "new", "path", "message", "remedy"),
    [
        ("source: cam", "source: cma", "pipelines.door.source", "no source is called `cma`", "did you mean `cam`?"),
        ("zone: gate", "zone: gaet", "pipelines.door.rules[0].zone", "no zone", "did you mean `gate`?"),
        ("model: person-detector", "model: a@", "pipelines.door.model", "name@version", ""),
        ("id: dock-7", "id: dock-7, time_zone: Mars/Base", "gateway.time_zone", "no time zone", "Europe/Berlin"),
        ("/dev/video0", "rtsp://me:pw@cam/1", "sources.cam.device", "do not belong into the URL", "password_file"),
        ("/dev/video0", "ftp://cam/1", "sources.cam.device", "cannot open", "rtsp://"),
        ("mqtts://bridge", "mqtt://bridge", "cloud.brokers[0].url", "readable over the network", "allow_plaintext"),
        ("mqtts://bridge", "mqtts://me:pw@bridge", "cloud.brokers[0].url", "do not belong into", "password_file"),
        ("mqtts://bridge", "ssl://bridge", "cloud.brokers[0].url", "expected mqtt://", "mqtts://bridge.example.net"),
        ("mqtts://bridge.example.net", "bridge:8883", "cloud.brokers[0].url", "expected", "mqtts://bridge:8883"),
        ('example.net"', 'example.net:99999"', "cloud.brokers[0].url", "expected mqtt://", ""),
        ('example.net"', 'example.net/path"', "cloud.brokers[0].url", "nothing may follow", ""),
        ("{name: someone, zone: gate}", "{name: a}, {name: a}", "pipelines.door.rules[1].name", "2 rules", "rename"),
        ("cloud:", "metrics: {host: 0.0.0.0}\ncloud:", "metrics.host", "open to everyone", "token_file"),
        ("cloud:", "outbox: {ballast_bytes: 1048576}\ncloud:", "outbox.ballast_bytes", "so little", "2097152"),
        ("cloud:", "local: {home_assistant: {enabled: true}}\ncloud:", "local.home_assistant.enabled", "none", "add"),
        (
            "rules:", "interest: {low_confidence: [0.6, 0.4]}\n    rules:",
            "pipelines.door.interest.low_confidence", "above the upper", "[0.4, 0.6]",
        ),
    ],
)  # fmt: skip
def test_a_contradiction_is_an_error(old: str, new: str, path: str, message: str, remedy: str) -> None:
    problem = only(GOOD.replace(old, new, 1))
    assert problem.path == path
    assert message in problem.message
    assert remedy in problem.remedy
    assert problem.line > 0
    assert "pw" not in problem.told("f")


@pytest.mark.parametrize(
    ("old", "new", "path", "message"),
    [
        ("pipelines:", "  spare: {type: health}\npipelines:", "sources.spare", "no pipeline uses"),
        (
            "cloud:", "outbox: {classes: {critical: {on_full: evict}}}\ncloud:",
            "outbox.classes.critical.on_full", "given up",
        ),
        ("zone: gate", "zone: gate, min_score: 0.1, hysteresis: 0.2", "pipelines.door.rules[0]", "never end"),
        ("type: camera, device: /dev/video0", "type: health", "pipelines.door.zones", "without pictures"),
    ],
)  # fmt: skip
def test_what_is_odd_is_a_warning(old: str, new: str, path: str, message: str) -> None:
    problem = only(GOOD.replace(old, new, 1), "warning")
    assert problem.path == path
    assert message in problem.message


def test_a_gateway_without_a_cloud_is_warned_of() -> None:
    text = GOOD[: GOOD.index("cloud:")]
    assert "no cloud broker" in only(text, "warning").message


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("mqtt://127.0.0.1", True),
        ("mqtt://localhost:1884", True),
        ("mqtt://[::1]:1883", True),
        ("mqtt://127.1.2.3", True),
        ("mqtt://192.168.1.5", False),
        ("mqtt://127.evil.example.net", False),
        ("mqtt://localhost.example.net", False),
    ],
)
def test_plaintext_is_for_this_machine_alone(url: str, allowed: bool) -> None:
    assert (check(GOOD.replace("mqtts://bridge.example.net", url)) == []) == allowed


def test_plaintext_is_allowed_where_a_person_says_so() -> None:
    text = GOOD.replace('{url: "mqtts://bridge.example.net"}', '{url: "mqtt://10.0.0.5", allow_plaintext: true}')
    assert check(text) == []


def test_a_leaf_sensor_needs_the_local_broker() -> None:
    text = GOOD.replace("{type: camera, device: /dev/video0}", "{type: mqtt, topic: a/b, rate_hz: 1}")
    text = text.replace("    zones: [{name: gate, polygon: [[0, 0], [1, 0], [1, 1]]}]\n", "").replace(
        ", zone: gate", ""
    )
    assert "local broker" in only(text).message
    assert check(text + 'local: {broker: {url: "mqtt://localhost"}}\n') == []


@pytest.mark.parametrize("key", ["password_file", "ca_file"])
def test_a_file_that_is_not_there_is_an_error_unless_files_do_not_matter(tmp_path: Path, key: str) -> None:
    text = GOOD.replace('example.net"', f'example.net", username: me, {key}: secret')
    problem = only(text, directory=tmp_path)
    assert problem.path == f"cloud.brokers[0].{key}"
    assert str(tmp_path / "secret") in problem.message
    assert check(text, directory=tmp_path, require_files=False) == []
    (tmp_path / "secret").write_text("s")
    (tmp_path / "secret").chmod(0o600)
    assert check(text, directory=tmp_path) == []


def test_a_secret_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "secret").chmod(0o644)
    text = GOOD.replace('example.net"', 'example.net", password_file: secret')
    assert "chmod 600" in only(text, "warning", tmp_path).remedy


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    (tmp_path / "cert").write_text("c")
    text = GOOD.replace('example.net"', 'example.net", certificate_file: cert')
    assert only(text, directory=tmp_path).message == "`certificate_file` needs `key_file`"


def test_a_mistake_elsewhere_does_not_hide_a_contradiction() -> None:
    text = GOOD.replace("source: cam", "source: cma").replace("{type: camera", "{type: camra")
    assert {problem.path for problem in check(text)} == {"sources.cam.type", "pipelines.door.source"}


def test_a_source_with_a_mistake_still_has_its_name() -> None:
    """The pipeline that uses it is right: only one mistake is told."""
    assert [problem.path for problem in check(GOOD.replace("device: /dev/video0", "fps: 5"))] == ["sources.cam"]


# ---- metering --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metering", "path", "message"),
    [
        (
            "{features: {records: {windows: [{open: 0 25 * * *, minutes: 5}]}}}",
            "features.records.windows[0].open",
            "25",
        ),
        ("{features: {records: {windows: [{open: daily, minutes: 5}]}}}", "features.records.windows[0].open", "five"),
        ("{classes: {bulk: {windows: [{open: 0 0 31 2 *, minutes: 5}]}}}", "classes.bulk.windows[0].open", "never"),
        ("{features: {records: {budget: {bytes: 50 monkeys, per: day}}}}", "features.records.budget.bytes", "50MB"),
        ("{features: {records: {budget: {bytes: 0, per: day}}}}", "features.records.budget.bytes", "1 or more"),
        ("{features: {pictures: {}}}", "features.pictures", "snapshots"),
        ("{override: [alarm]}", "override[0]", "critical"),
    ],
)
def test_what_is_wrong_with_a_budget_or_a_window_is_told_with_its_place(metering: str, path: str, message: str) -> None:
    problem = only(f"{GOOD}metering: {metering}\n")
    assert problem.path == f"metering.{path}"
    assert message in problem.message + problem.remedy


def test_limits_that_never_apply_are_told() -> None:
    text = GOOD.replace("example.net", 'example.net", metered: false, username: "me').replace(
        'username: "me"', "keepalive_seconds: 30"
    )
    problem = only(f"{text}metering: {{features: {{records: {{}}}}}}\n", "warning")
    assert "no broker is metered" in problem.message
    telemetry = only(f"{GOOD}metering: {{features: {{telemetry: {{}}}}}}\n", "warning")
    assert "publish_events" in telemetry.remedy


def test_good_budgets_and_windows_have_no_problems() -> None:
    window = "{windows: [{open: 0 2 * * 1-5, minutes: 60}]}"
    metering = f"{{features: {{records: {{budget: {{bytes: 50MB, per: day}}}}, snapshots: {window}}}}}"
    assert check(f"{GOOD}metering: {metering}\n") == []


# ---- beside what is wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "first", "second"),
    [
        ("model: person-detector", "model: 5", "pipelines.door.model", "pipelines.door.rules[0].zone"),
        ("source: cam", "source: [cam]", "pipelines.door.source", "pipelines.door.rules[0].zone"),
        ("    model: person-detector\n", "", "pipelines.door", "pipelines.door.rules[0].zone"),
    ],
)
def test_one_bad_value_does_not_hide_what_is_wrong_with_its_siblings(
    old: str, new: str, first: str, second: str
) -> None:
    found = check(GOOD.replace(old, new).replace("zone: gate", "zone: gaet"))
    assert {problem.path for problem in found} == {first, second}


def test_nothing_is_said_about_what_only_stands_in_for_a_bad_value() -> None:
    found = check(GOOD.replace("device: /dev/video0", "device: 7"))
    assert [problem.path for problem in found] == ["sources.cam.device"]


# ---- vault and identity ----------------------------------------------------------------------------------


def test_level_tpm_needs_the_key_of_its_policies() -> None:
    problem = only(GOOD.replace("{level: software}", "{level: tpm}"))
    assert problem.path == "vault.level"
    assert "gateway vault policy keygen" in problem.remedy
    assert check(GOOD.replace("{level: software}", "{level: tpm, policy_key_file: k}"), require_files=False) == []


def test_what_concerns_a_tpm_means_nothing_at_level_software() -> None:
    problem = only(GOOD.replace("{level: software}", '{level: software, tcti: "device:/dev/tpm0"}'), "warning")
    assert problem.path == "vault.tcti"


@pytest.mark.parametrize("directory", ["state/models", "state/models/more"])
def test_the_sealed_store_is_no_place_for_releases_in_clear(tmp_path: Path, directory: str) -> None:
    (tmp_path / directory).mkdir(parents=True)
    text = GOOD.replace("{id: dock-7}", "{id: dock-7, state_directory: state}")
    problem = only(text + f"models: {{directories: [{directory}]}}\n", directory=tmp_path)
    assert problem.path == "models.directories[0]"
    assert "store of sealed releases" in problem.message


IDENTITY = 'identity: {url: "https://bridge.example.net:8471"}\n'
WITH_IDENTITY = GOOD.replace('example.net"', 'example.net", identity: true') + IDENTITY


def test_brokers_may_be_shown_the_identity() -> None:
    assert check(WITH_IDENTITY) == []


@pytest.mark.parametrize(
    ("old", "new", "path", "message"),
    [
        (IDENTITY, "", "cloud.brokers[0].identity", "no identity to show"),
        ("mqtts://", "mqtt://127.0.0.1?", "cloud.brokers[0].url", "nothing may follow"),
        ("mqtts://bridge.example.net", "mqtt://127.0.0.1", "cloud.brokers[0].identity", "cannot be shown over mqtt://"),
        ("identity: true", "identity: true, ca_file: c", "cloud.brokers[0].ca_file", "no place beside"),
        ("identity: true", "identity: true, crl_file: c", "cloud.brokers[0].crl_file", "no place beside"),
        ("https://", "http://", "identity.url", "expected https://host:8471"),
        (":8471", ":8471/identity", "identity.url", "only host and port"),
        (
            IDENTITY, IDENTITY + 'local: {broker: {url: "mqtts://bridge.example.net", identity: true}}\n',
            "local.broker.url", "must be another than that of the cloud",
        ),
    ],
)  # fmt: skip
def test_an_identity_that_cannot_be_shown_is_an_error(old: str, new: str, path: str, message: str) -> None:
    found = [each for each in check(WITH_IDENTITY.replace(old, new), require_files=False) if each.severity == "error"]
    assert path in [problem.path for problem in found]
    assert any(message in problem.message for problem in found)


def test_a_login_beside_the_identity_is_warned_of() -> None:
    problem = only(WITH_IDENTITY.replace("identity: true", "identity: true, username: me"), "warning")
    assert problem.path == "cloud.brokers[0].username"


def test_a_secret_in_the_query_of_a_camera_is_warned_of_and_not_repeated() -> None:
    found = only(GOOD.replace("/dev/video0", "'http://cam/s.cgi?user=me&pwd=s3cret'"), "warning")
    assert found.path == "sources.cam.device"
    assert "s3cret" not in found.told("f")
    assert "query_file" in found.remedy
    assert "password_file" in found.remedy
    assert check(GOOD.replace("/dev/video0", "'http://cam/s.cgi?channel=1'")) == [], "the control: no secret, no word"


@pytest.mark.parametrize("url", ["http://bridge.example.net:8472", "ftp://bridge.example.net", "bridge", "https://"])
def test_an_address_of_the_repository_that_is_none_is_told_before_the_gateway_starts(url: str) -> None:
    text = GOOD + f'ota: {{root_file: root.json, url: "{url}"}}\n'
    (found,) = [each for each in check(text, require_files=False) if each.severity == "error"]
    assert found.path == "ota.url"
    assert "expected https://host:8472" in found.message
    control = text.replace(f'"{url}"', '"https://bridge.example.net:8472"')
    assert [each for each in check(control, require_files=False) if each.severity == "error"] == []


def test_a_trial_that_ends_before_scores_are_compared_is_warned_of() -> None:
    text = GOOD + "ota: {root_file: root.json, trial: {min_inferences: 49}}\n"
    path = "ota.trial.min_inferences"
    assert [each.severity for each in check(text, require_files=False) if each.path == path] == ["warning"]
    assert path not in [each.path for each in check(text.replace("49", "50"), require_files=False)], "the control"


def test_a_missing_first_root_disables_updates_and_nothing_else(tmp_path: Path) -> None:
    text = GOOD + "ota: {root_file: root.json}\n"
    found = only(text, "warning", tmp_path)
    assert found.path == "ota.root_file"
    assert "no updates" in found.message
    (tmp_path / "root.json").write_text('{"signed": {"_type": "root"}, "signatures": []}')
    assert check(text, directory=tmp_path) == []


@pytest.mark.parametrize("content", ["", "{}", "not JSON", '{"signed": {"_type": "targets"}}', "[" * 100_000])
def test_a_file_that_is_no_root_is_warned_of(tmp_path: Path, content: str) -> None:
    (tmp_path / "root.json").write_text(content)
    found = only(GOOD + "ota: {root_file: root.json}\n", "warning", tmp_path)
    assert found.path == "ota.root_file"
    assert f"{tmp_path / 'root.json'} is no root.json" in found.message


def test_updates_without_any_way_are_warned_of() -> None:
    text = GOOD.partition("cloud:")[0] + "ota: {root_file: root.json}\n"
    found = {each.path: each for each in check(text, require_files=False)}
    assert "gateway ota import" in found["ota"].remedy
    control = text.replace("root.json", 'root.json, url: "https://b.example:8472"')
    assert "ota" not in {each.path for each in check(control, require_files=False)}
    assert "ota" not in {each.path for each in check(GOOD + "ota: {root_file: r}\n", require_files=False)}


def test_only_a_camera_on_the_network_has_a_query(tmp_path: Path) -> None:
    (tmp_path / "q").write_text("token=x")
    (tmp_path / "q").chmod(0o600)
    found = only(GOOD.replace("/dev/video0", "/dev/video0, query_file: q"), directory=tmp_path)
    assert (found.path, found.remedy) == ("sources.cam.query_file", "remove `query_file`")
    assert check(GOOD.replace("/dev/video0", "'http://cam/s', query_file: q"), directory=tmp_path) == []
