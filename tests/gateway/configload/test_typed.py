"""Every mistake against the types is told, with place, path, expectation and remedy."""

import pytest

from gateway.configload import Problem, check

GOOD = """\
gateway: {id: dock-7}
vault: {level: software}
sources:
  cam: {type: camera, device: /dev/video0}
pipelines:
  door: {source: cam, model: person-detector}
cloud: {brokers: [{url: "mqtts://bridge.example.net"}]}
"""


def errors(text: str) -> list[Problem]:
    return [problem for problem in check(text) if problem.severity == "error"]


def only(text: str) -> Problem:
    found = errors(text)
    assert len(found) == 1, [problem.told("f") for problem in found]
    return found[0]


def test_a_good_file_has_no_problems() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize(
    ("addition", "path", "message", "remedy"),
    [
        ("metrics: {prot: 9000}\n", "metrics.prot", "unknown key `prot`", "did you mean `port`?"),
        ("metrics: {port: 70000}\n", "metrics.port", "a whole number from 0 to 65535, found the number 70000", ""),
        ("metrics: {port: '80'}\n", "metrics.port", 'found the text "80"', "write 80, without quotes or `_`"),
        ("metrics: {port: 1_000}\n", "metrics.port", 'found the text "1_000"', "write 1000, without quotes or `_`"),
        ("metrics: {enabled: yes}\n", "metrics.enabled", "expected `true` or `false`", "write `true`"),
        ("metrics: {host: 5}\n", "metrics.host", "expected text, found the number 5", 'put it in quotes: "5"'),
        ("metrics: {port: 1.5}\n", "metrics.port", "found the number 1.5", ""),
        ("metrics: {port: true}\n", "metrics.port", "found `true`", ""),
        ("metrics: {port: }\n", "metrics.port", "found nothing", "give a value, or remove the key"),
        ("metrics: 5\n", "metrics", "expected a table, found the number 5", ""),
        ("metrics: [port]\n", "metrics", "expected a table, found a list", "write `key: value` lines, without `-`"),
        ("log: {level: warn}\n", "log.level", "expected one of", "did you mean `warning`?"),
        ("models: {directories: models}\n", "models.directories", "expected a list", "put it into a list: [models]"),
        ("outbox: {classes: {evnt: {}}}\n", "outbox.classes.evnt", "expected one of", "did you mean `event`?"),
        ("outbox: {ballast_bytes: -1}\n", "outbox.ballast_bytes", "a whole number, 0 or more", ""),
        ("metrics: {token: hunter2}\n", "metrics.token", "secrets are never written", "give `token_file: PATH`"),
        ("locl: {}\n", "locl", "unknown key `locl`", "did you mean `local`?"),
    ],
)
def test_a_mistake_is_explained(addition: str, path: str, message: str, remedy: str) -> None:
    problem = only(GOOD + addition)
    assert problem.path == path
    assert message in problem.message
    assert remedy in problem.remedy
    assert problem.line == 8
    assert "hunter2" not in problem.told("f")


def test_the_place_is_that_of_the_value() -> None:
    problem = only(GOOD.replace("device: /dev/video0", "device: /dev/video0, fps: 500"))
    assert (problem.line, problem.column) == (4, 49)
    assert problem.told("g.yaml").startswith(
        "g.yaml:4:49: error: sources.cam.fps: expected a number above 0, at most 120"
    )


def test_a_source_without_a_type_says_which_there_are() -> None:
    problem = only(GOOD.replace("type: camera, ", ""))
    assert problem.path == "sources.cam"
    assert problem.message == "`type` is missing"
    assert "camera, health, iio, modbus, mqtt, replay, serial" in problem.remedy


def test_a_mistyped_type_is_recognised() -> None:
    assert only(GOOD.replace("type: camera", "type: camra")).remedy == "did you mean `camera`?"


def test_a_key_of_another_type_is_recognised() -> None:
    problem = only(GOOD.replace("device: /dev/video0", "device: /dev/video0, baudrate: 9600"))
    assert problem.remedy == "it belongs to type serial"


def test_missing_keys_are_told_one_by_one() -> None:
    found = errors("gateway: {}\nsources: {}\nvault: {}\n")
    assert sorted(problem.message for problem in found) == [
        "`id` is missing",
        "`level` is missing",
        "`pipelines` is missing",
    ]


@pytest.mark.parametrize("vault", ["", "vault: {}\n", "vault: {timeout_seconds: 3}\n"])
def test_no_level_of_the_vault_is_assumed_and_both_are_explained(vault: str) -> None:
    problem = only(GOOD.replace("vault: {level: software}\n", vault))
    assert "is missing" in problem.message
    for words in ("`tpm`", "approved boot states", "`software`", "beside what it protects", "for development"):
        assert words in problem.remedy


def test_names_are_checked_and_explained_in_words() -> None:
    problem = only(GOOD.replace("  door:", "  Front Door:"))
    assert problem.path == "pipelines.Front Door"
    assert "lower-case letters, digits" in problem.message


def test_a_line_end_cannot_hide_behind_a_pattern() -> None:
    assert only(GOOD.replace("id: dock-7", 'id: "dock-7\\n"')).path == "gateway.id"


@pytest.mark.parametrize(("speed", "good"), [("max", True), ("2.5", True), ("fast", False), ("0", False)])
def test_a_value_of_one_of_two_kinds_is_checked_against_both(speed: str, good: bool) -> None:
    text = GOOD.replace("{type: camera, device: /dev/video0}", f"{{type: replay, file: {__file__}, speed: {speed}}}")
    found = errors(text)
    assert found == [] if good else "a number above 0 or `max`" in found[0].message


def test_a_zone_with_two_corners_is_no_zone() -> None:
    zones = "zones: [{name: gate, polygon: [[0, 0], [1, 1]]}]"
    problem = only(GOOD.replace("model: person-detector", f"model: person-detector, {zones}"))
    assert problem.message == "expected at least 3 entries, found 2"


def test_a_corner_outside_the_picture_is_told_by_its_number() -> None:
    zones = "zones: [{name: gate, polygon: [[0, 0], [1, 1], [0, 1.5]]}]"
    assert only(GOOD.replace("model: person-detector", f"model: person-detector, {zones}")).path == (
        "pipelines.door.zones[0].polygon[2][1]"
    )


def test_a_number_may_be_the_name_of_a_choice() -> None:
    assert errors(GOOD.replace('net"', 'net", protocol: 5')) == []
