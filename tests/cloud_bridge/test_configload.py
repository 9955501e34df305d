from pathlib import Path

import jsonschema
import msgspec
import pytest
import yaml

from cloud_bridge.config import Config
from cloud_bridge.configload import InvalidConfigError, away, load, parse, schema
from cloud_bridge.errors import ConfigError


def mistakes(text: str) -> list[str]:
    with pytest.raises(InvalidConfigError) as caught:
        parse(text)
    return [str(problem) for problem in caught.value.problems]


def test_a_broker_is_all_that_is_needed() -> None:
    config = parse("brokers: [{url: 'mqtt://127.0.0.1:1883'}]")
    assert config.brokers[0].url == "mqtt://127.0.0.1:1883"
    assert msgspec.structs.replace(config, brokers=[]) == Config()


def test_an_empty_file_is_all_defaults() -> None:
    assert parse("") == Config()


def test_every_mistake_is_told_with_its_place() -> None:
    assert mistakes(
        """\
brokers:
  - url: mqtt://127.0.0.1
    keepalive_seconds: 1
    usernam: me
  - password_file: 7
ingest:
  workers: many
  worker: 2
retension: {}
store:
  url: mysql://db
"""
    ) == [
        "line 3, column 5: brokers[0].keepalive_seconds: expected `int` >= 5",
        "line 4, column 5: brokers[0].usernam: unknown key; did you mean `username`?",
        "line 5, column 5: brokers[1].password_file: expected a path",
        "line 5, column 5: brokers[1]: object missing required field `url`",
        "line 7, column 3: ingest.workers: expected `int`, got `str`",
        "line 8, column 3: ingest.worker: unknown key; did you mean `workers`?",
        "line 9, column 1: retension: unknown key; did you mean `retention`?",
        "line 11, column 3: store.url: expected sqlite:///PATH or postgresql://HOST/DATABASE",
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a", "expected a table"),
        ("a: b: c", "not YAML"),
        ("ingest: {}\ningest: {}", "given twice"),
        ("a: !!python/object:os.system {}", "not YAML"),
        ("brokers: [{url: 'mqtt://broker.example'}]", "not encrypted"),
        ("brokers: [{url: 'http://127.0.0.1'}]", "expected mqtt://"),
        ("brokers: [{url: 'mqtt://me:secret@127.0.0.1'}]", "password_file"),
        ("brokers: [{url: 'mqtt://127.0.0.1', protocol: '3.1.1'}]", "subscription: plain"),
        ("ingest: {subscription: plain, workers: 2}", "workers: 1"),
        ("metrics: {port: 9000, host: 0.0.0.0}", "console"),
    ],
)
def test_mistakes_say_what_to_do(text: str, part: str) -> None:
    found = "\n".join(mistakes(text))
    assert part in found
    assert "secret" not in found


@pytest.mark.parametrize("keys", ["/x/reg/keys", "/x/reg", "/x/other/../reg/keys"])
def test_private_keys_in_what_is_served_are_refused(keys: str) -> None:
    with pytest.raises(InvalidConfigError, match="private keys must not lie in what is served"):
        parse(f"registry: {{url: /x/reg, keys: {keys}}}")
    parse("registry: {url: /x/reg, keys: /x/reg-keys}")  # the control


@pytest.mark.parametrize(
    ("text", "where", "word"),
    [
        ("registry: {url: 'foo://x'}", "registry.url", "foo:// is no kind of place"),
        ("rollout: {every_seconds: .inf}", "rollout.every_seconds", "a number that ends"),
        ("drift: {every_seconds: -.inf}", "drift.every_seconds", "a number that ends"),
        ("drift: {psi_warning: 0.3}", "drift.psi_warning", "above drift.psi_alarm, 0.25"),
        ("drift: {outside_warning: 0.5}", "drift.outside_warning", "above drift.outside_alarm, 0.25"),
    ],
)
def test_what_could_not_work_is_told_before_the_bridge_starts(text: str, where: str, word: str) -> None:
    found = mistakes(text)
    assert any(f"{where}: " in one and word in one for one in found), found
    assert all(one.startswith("line 1, column ") for one in found)


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "memory://x", "/srv/registry", "registry"])
def test_places_that_are_known_are_accepted(url: str) -> None:
    """The control; whether the package for one is installed, the registry says."""
    registry = parse(f"registry: {{url: '{url}', keys: /keys}}\ndrift: {{psi_warning: 0.25}}").registry
    assert registry is not None


def test_files_that_are_not_on_this_host_are_named_and_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "bridge.yaml").write_text("identity: {trust_domain: a.example, ek_roots: makers}\n")
    config = load(tmp_path / "bridge.yaml")
    assert [(one.where, str(tmp_path / "makers") in one.message) for one in away(config)] == [
        ("identity.ek_roots", True)
    ]
    (tmp_path / "makers").mkdir()
    assert away(config) == [], "the control"


def test_plaintext_over_a_network_must_be_wanted() -> None:
    config = parse("brokers: [{url: 'mqtt://broker.example', allow_plaintext: true}]")
    assert config.brokers[0].allow_plaintext


def test_relative_paths_are_beside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bridge.yaml"
    file.write_text("store: {password_file: secrets/db}\nconsole: {token_file: /run/token}\n")
    config = load(file)
    assert config.store.password_file == tmp_path / "secrets" / "db"
    assert config.console.token_file == Path("/run/token")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(tmp_path / "latin.yaml")


def test_a_device_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(ConfigError, match="larger than"):
        load(Path("/dev/zero"))


def test_the_schema_accepts_what_the_loader_accepts_and_refuses_unknown_keys() -> None:
    good = yaml.safe_load("brokers: [{url: 'mqtt://127.0.0.1', ca_file: ca.pem}]\nretention: {bulk_days: null}")
    jsonschema.validate(good, schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"broker": []}, schema())


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "a: &a {b: {c: *a}}\n"])
def test_a_value_that_stands_inside_itself_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(InvalidConfigError, match="line 1, column 4: stands inside what it names"):
        parse(text)


def test_a_value_that_is_only_used_twice_is_none_of_these() -> None:
    with pytest.raises(InvalidConfigError, match="unknown"):
        parse("a: &a [1]\nb: *a\n")
