"""The repository in an object store: the S3 protocol on loopback, with signatures that are checked."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from cloud_bridge.errors import ConfigError
from cloud_bridge.registry.app import create_app
from cloud_bridge.registry.errors import NotFoundError, StorageError
from cloud_bridge.registry.metrics import RegistryMetrics
from cloud_bridge.registry.storage import Storage
from tests.cloud_bridge.registry.kit import Site, client, listed, release, weights
from tests.cloud_bridge.registry.test_killed import WRITES
from tests.simulators.dying_storage import KILLED, DyingStorage
from tests.simulators.s3 import S3Server

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.net,
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        importlib.util.find_spec("moto") is None, reason="moto is not installed: pip install sluice[dev]"
    ),
]


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    """One store for the module; each test has a prefix of its own in it."""
    with S3Server() as server:
        yield server


@pytest.fixture
def url(store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where this test's repository lies; the environment says how to get there, as an operator's does."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody's ~/.aws
    store.set(failing=False, puts_left=-1)
    _forget()
    yield f"s3://{store.bucket}/{tmp_path.name}/registry"
    store.set(failing=False, puts_left=-1)
    _forget()


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "directory":
        return Storage(str(tmp_path / "repository"))
    return Storage(request.getfixturevalue("url"))


def test_a_file_is_read_back_whole_and_in_parts(storage: Storage, tmp_path: Path) -> None:
    storage.write("targets/a/one.bin", b"old")
    storage.write("targets/a/one.bin", b"0123456789")
    (tmp_path / "two").write_bytes(bytes(300_000))
    storage.write_from("targets/a/two.bin", tmp_path / "two")
    assert storage.read("targets/a/one.bin") == b"0123456789"
    assert storage.read("targets/a/one.bin", 3, 4) == b"3456"
    assert storage.read("targets/a/one.bin", 8, 10) == b"89", "shorter at its end"
    assert storage.read("targets/a/one.bin", 10, 4) == b""
    assert storage.read("targets/a/one.bin", 50) == b""
    assert storage.read("targets/a/one.bin", 2, 0) == b""
    assert (storage.size("targets/a/one.bin"), storage.size("targets/a/two.bin")) == (10, 300_000)
    assert storage.files("targets/a") == ["targets/a/one.bin", "targets/a/two.bin"]
    assert storage.files("targets") == storage.files("nowhere") == []


def test_what_is_not_there_is_said_to_be_not_there(storage: Storage) -> None:
    storage.write("targets/a/one.bin", b"1")
    storage.remove("targets/a/one.bin")
    storage.remove("targets/a/one.bin")
    for path in ("targets/a/one.bin", "targets/a", "metadata/timestamp.json"):
        with pytest.raises(NotFoundError):
            storage.read(path)
        with pytest.raises(NotFoundError):
            storage.size(path)


def versions(site: Site, directory: Path, url: str) -> set[str]:
    """What a TUF client that is not ours is offered."""
    root = (site.directory / "keys" / "root.json").read_bytes()
    return {path.split("/")[2] for path in listed(client(directory, Storage(url), root))}


def test_a_fleet_follows_a_registry_that_publishes_into_a_bucket(url: str, tmp_path: Path) -> None:
    site = Site(tmp_path, knobs={"url": url}).begin()
    site.running[("detector", "1.0.0")] = 3
    site.publish(release(tmp_path))
    site.publish(release(tmp_path, "1.0.1", weights(1, 0.02)))
    assert versions(site, tmp_path / "client", url) == {"1.0.0", "1.0.1"}
    assert any(name.endswith(".patch.sealed") for name in Storage(url).files("targets/models/detector/1.0.1"))
    site.registry.yank("detector", "1.0.0", "it was bad")
    assert versions(site, tmp_path / "client", url) == {"1.0.1"}
    site.db.close()


async def test_ranges_of_an_object_are_served(url: str, tmp_path: Path) -> None:
    site = Site(tmp_path, knobs={"url": url}).begin()
    entry = site.publish(release(tmp_path, "1.0.0", weights(1, size=700_000))).entry
    place = max(entry.files, key=lambda file: file.size_bytes).place
    whole = Storage(url).read(place)
    app = create_app(site.registry, RegistryMetrics(CollectorRegistry()), requests_per_minute=1000)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="https://registry") as http:
        first = await http.get(f"/{place}", headers={"range": "bytes=0-299999"})
        rest = await http.get(f"/{place}", headers={"range": "bytes=300000-", "if-range": first.headers["etag"]})
        beyond = await http.get(f"/{place}", headers={"range": f"bytes={len(whole)}-"})
    assert (first.status_code, rest.status_code, beyond.status_code) == (206, 206, 416)
    assert first.content + rest.content == whole
    site.db.close()


def killed(act: Callable[[], object]) -> bool:
    """Do something in a process of its own, which opens its own storage; return whether it was killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def _published(directory: Path, made: Path, storage: DyingStorage) -> None:
    Site(directory, storage=storage).publish(made)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [0, WRITES - 2, WRITES - 1])
def test_a_publisher_that_is_killed_leaves_the_old_repository_or_the_new(
    url: str, tmp_path: Path, at: int, after: bool
) -> None:
    site = Site(tmp_path, knobs={"url": url}).begin()
    site.publish(release(tmp_path, "1.0.0", weights(1)))
    site.db.close()  # nothing of it is open in this process, which is going to fork
    made = release(tmp_path, "1.1.0", weights(1, 0.1))
    assert killed(lambda: _published(tmp_path, made, DyingStorage(url, at=at, after=after)))
    is_new = at == WRITES - 1 and after
    again = Site(tmp_path, knobs={"url": url})
    assert versions(again, tmp_path / "client", url) == ({"1.0.0", "1.1.0"} if is_new else {"1.0.0"})
    entry = again.publish(made).entry
    assert versions(again, tmp_path / "client", url) == {"1.0.0", "1.1.0"}
    assert set(Storage(url).files("targets/models/detector/1.1.0")) == {file.place for file in entry.files}
    again.db.close()


def test_a_store_that_goes_away_in_the_middle_of_an_object_leaves_the_old_repository(
    url: str, store: S3Server, tmp_path: Path
) -> None:
    site = Site(tmp_path, knobs={"url": url}).begin()
    site.publish(release(tmp_path, "1.0.0", weights(1)))
    made = release(tmp_path, "1.1.0", weights(1, 0.1))
    store.set(puts_left=WRITES - 1)  # all but the timestamp
    with pytest.raises(StorageError, match=r"timestamp\.json cannot be written"):
        site.publish(made)
    store.set(puts_left=-1)
    assert versions(site, tmp_path / "client", url) == {"1.0.0"}
    site.publish(made)
    assert versions(site, tmp_path / "client", url) == {"1.0.0", "1.1.0"}
    site.db.close()


WRONG = {
    "AWS_SECRET_ACCESS_KEY": ("wrong", "AWS_SECRET_ACCESS_KEY"),
    "AWS_ACCESS_KEY_ID": ("AKIAOFNOBODY", "AWS_ACCESS_KEY_ID"),
    "AWS_ENDPOINT_URL": ("http://127.0.0.1:1", "AWS_ENDPOINT_URL"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_an_error_that_names_the_remedy(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Storage(url).write("targets/a", b"the control: with the right ones it is written")
    value, remedy = WRONG[name]
    monkeypatch.setenv(name, value)
    storage = _anew(url)
    for act in (lambda: storage.read("targets/a"), lambda: storage.write("a", b"1"), lambda: storage.files("a")):
        with pytest.raises(StorageError, match=remedy) as raised:
            act()
        assert storage.url in str(raised.value)


def test_without_any_credentials_the_remedy_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StorageError, match=r"give the bridge's user AWS_ACCESS_KEY_ID"):
        _anew(url).read("targets/a")


def test_a_bucket_that_is_not_there_is_to_be_made(url: str, store: S3Server) -> None:
    with pytest.raises(StorageError, match="make the bucket first"):
        Storage(url.replace(store.bucket, "another")).write("a", b"1")


def test_a_store_that_is_overloaded_is_no_loss_of_files(url: str, store: S3Server) -> None:
    storage = Storage(url)
    storage.write("targets/a", b"1")
    store.set(failing=True)
    with pytest.raises(StorageError):  # not NotFoundError: whoever serves it says 503, and not 404
        storage.read("targets/a")
    store.set(failing=False)
    assert storage.read("targets/a") == b"1"


_WITHOUT = """
import sys
sys.modules["s3fs"] = None
from cloud_bridge.errors import ConfigError
from cloud_bridge.registry.storage import Storage
try:
    Storage("s3://models/registry")
except ConfigError as error:
    print(error)
"""


def test_without_its_package_a_bucket_is_a_configuration_that_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT], check=True, capture_output=True, text=True, cwd=ROOT)
    assert "pip install 'sluice[cloud,s3]'" in done.stdout


def test_a_kind_of_place_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        Storage("nowhere://models")


def _anew(url: str) -> Storage:
    """Open it as another process does."""
    _forget()
    return Storage(url)


def _forget() -> None:
    """Have nothing of an earlier environment used: fsspec keeps what it was told when it was first asked."""
    import s3fs  # noqa: PLC0415 - of the extra `s3`

    s3fs.S3FileSystem.clear_instance_cache()
