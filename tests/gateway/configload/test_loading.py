"""Files become configurations, or errors that tell all mistakes."""

from pathlib import Path

import pytest

from gateway.config import CameraSource, Config
from gateway.configload import InvalidConfigError, load, read
from gateway.configload.document import MAX_TEXT_BYTES
from gateway.errors import ConfigError

GOOD = """\
gateway: {id: dock-7, state_directory: state}
vault: {level: software}
sources:
  cam: {type: camera, device: clips/a.mp4, username: me, password_file: secret}
pipelines:
  door: {source: cam, model: person-detector}
outbox: {classes: {bulk: {max_rows: 7}}}
"""


def written(directory: Path, text: str) -> Path:
    file = directory / "gateway.yaml"
    file.write_text(text)
    secret = directory / "secret"
    secret.write_text("hunter2\n")
    secret.chmod(0o600)
    return file


def loaded(directory: Path, text: str, **environment: str) -> Config:
    return load(written(directory, text), environment=environment)


def test_paths_start_at_the_directory_of_the_file(tmp_path: Path) -> None:
    config = loaded(tmp_path, GOOD)
    camera = config.sources["cam"]
    assert isinstance(camera, CameraSource)
    assert config.gateway.state_directory == tmp_path / "state"
    assert camera.password_file == tmp_path / "secret"
    assert camera.device == str(tmp_path / "clips" / "a.mp4")


@pytest.mark.parametrize("device", ["/dev/video0", "rtsp://192.0.2.1/1"])
def test_devices_and_urls_stay_as_they_are(tmp_path: Path, device: str) -> None:
    camera = loaded(tmp_path, GOOD.replace("clips/a.mp4", device)).sources["cam"]
    assert isinstance(camera, CameraSource)
    assert camera.device == device


def test_what_is_said_of_a_class_is_laid_over_its_own_defaults(tmp_path: Path) -> None:
    classes = loaded(tmp_path, GOOD).outbox.classes
    assert classes["bulk"].max_rows == 7
    assert classes["bulk"].max_bytes == 256 * 1024 * 1024
    assert classes["critical"].on_full == "refuse"


def test_a_secret_may_be_a_credential_of_the_unit(tmp_path: Path) -> None:
    text = GOOD.replace("password_file: secret", "password_file: '${CREDENTIALS_DIRECTORY}/secret'")
    camera = loaded(tmp_path, text, CREDENTIALS_DIRECTORY=str(tmp_path)).sources["cam"]
    assert isinstance(camera, CameraSource)
    assert camera.password_file == tmp_path / "secret"
    with pytest.raises(InvalidConfigError, match="CREDENTIALS_DIRECTORY is not set"):
        loaded(tmp_path, text)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("state_directory: state", "state_directory: '${CREDENTIALS_DIRECTORY}/x'", "known in `…_file` keys only"),
        ("password_file: secret", "password_file: '/x/${CREDENTIALS_DIRECTORY}'", "must come first"),
        ("password_file: secret", "password_file: '${HOME}/secret'", "variables are not replaced"),
        ("password_file: secret", "password_file: ~/secret", "depends on who runs"),
        ("password_file: secret", "password_file: ''", "empty"),
        ("password_file: secret", 'password_file: "a\\0b"', "NUL"),
    ],
)
def test_other_variables_are_refused(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    with pytest.raises(InvalidConfigError, match=complaint):
        loaded(tmp_path, GOOD.replace(old, new), CREDENTIALS_DIRECTORY=str(tmp_path))


def test_the_error_tells_all_mistakes_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("id: dock-7", "id: D").replace("source: cam", "source: x").replace("max_rows: 7", "max_rows: 0")
    with pytest.raises(InvalidConfigError) as caught:
        loaded(tmp_path, text)
    assert [problem.line for problem in caught.value.problems] == [1, 6, 7]
    assert str(caught.value).count("gateway.yaml:") == 3


def test_warnings_do_not_keep_a_file_from_being_used(tmp_path: Path) -> None:
    reading = read(written(tmp_path, GOOD))
    assert reading.config is not None
    assert reading.errors == []
    assert "no cloud broker" in reading.warnings[0].message


def test_a_file_that_cannot_be_read_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config example"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="directory"):
        load(tmp_path)


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(InvalidConfigError, match=f"{MAX_TEXT_BYTES + 1} bytes"):
        load(Path("/dev/zero"))


def test_the_example_that_ships_has_no_mistakes() -> None:
    example = Path(__file__).parents[3] / "gateway" / "example.yaml"
    assert read(example, require_files=False, environment={}).problems == []
