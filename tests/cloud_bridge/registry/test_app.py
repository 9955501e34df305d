"""The repository over HTTP: whole files, parts of them, and nothing else."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry

from cloud_bridge.registry.app import BLOCK_BYTES, create_app
from cloud_bridge.registry.errors import NotFoundError, StorageError
from cloud_bridge.registry.metrics import RegistryMetrics
from cloud_bridge.registry.registry import checked_path
from tests.cloud_bridge.identity.kit import Caller
from tests.cloud_bridge.registry.kit import Site, release, weights


class Web:
    """The application of a site; requests come from one address."""

    def __init__(self, site: Site, requests_per_minute: float = 10_000) -> None:
        self.metrics_registry = CollectorRegistry()
        app = create_app(site.registry, RegistryMetrics(self.metrics_registry), requests_per_minute=requests_per_minute)
        self._runner = asyncio.Runner()
        transport = httpx.ASGITransport(app, client=("192.0.2.7", 50000))
        self._client = httpx.AsyncClient(transport=transport, base_url="https://bridge")

    def get(self, path: str, method: str = "GET", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._runner.run(self._client.request(method, path, headers=named))

    def close(self) -> None:
        self._runner.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A registry with a release of more than two blocks; made once, for nothing here changes it for good."""
    directory = tmp_path_factory.mktemp("served")
    site = Site(directory).begin()
    site.publish(release(directory, content=weights(3, size=3 * BLOCK_BYTES)))
    yield site
    site.db.close()


@pytest.fixture
def web(site: Site) -> Iterator[Web]:
    web = Web(site)
    yield web
    web.close()


def artefact(site: Site) -> tuple[str, bytes]:
    """Where the artefact lies, and what it is."""
    [entry] = site.registry.releases()
    file = next(file for file in entry.files if file.custom["kind"] == "artefact")
    return f"/{file.place}", site.registry.read(file.place)


def test_a_file_is_served_whole(web: Web, site: Site) -> None:
    path, content = artefact(site)
    assert len(content) > 2 * BLOCK_BYTES
    answer = web.get(path)
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["accept-ranges"] == "bytes"
    assert "immutable" in answer.headers["cache-control"]
    assert web.get("/metadata/timestamp.json").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("first", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1])
def test_a_download_goes_on_at_the_byte(web: Web, site: Site, first: int) -> None:
    path, content = artefact(site)
    answer = web.get(path, range=f"bytes={first}-", if_range=web.get(path).headers["etag"])
    assert (answer.status_code, answer.content) == (206, content[first:])
    assert answer.headers["content-range"] == f"bytes {first}-{len(content) - 1}/{len(content)}"


def test_who_has_a_part_of_another_file_gets_the_whole_one(web: Web, site: Site) -> None:
    path, content = artefact(site)
    answer = web.get(path, range="bytes=5-", if_range='"of something else"')
    assert (answer.status_code, answer.content) == (200, content)


def test_a_range_beyond_the_end_and_a_known_file_cost_nothing(web: Web, site: Site) -> None:
    path, content = artefact(site)
    answer = web.get(path, range=f"bytes={len(content)}-")
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(content)}"
    answer = web.get(path, if_none_match=web.get(path).headers["etag"])
    assert (answer.status_code, answer.content) == (304, b"")


def test_a_head_tells_the_size_alone(web: Web, site: Site) -> None:
    path, content = artefact(site)
    answer = web.get(path, "HEAD")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(content))


def test_the_etag_of_the_timestamp_changes_with_it(web: Web, site: Site) -> None:
    before = web.get("/metadata/timestamp.json").headers["etag"]
    site.registry.refresh(force=True)
    answer = web.get("/metadata/timestamp.json", if_none_match=before)
    assert answer.status_code == 200
    assert answer.headers["etag"] != before


@pytest.mark.parametrize(
    "path",
    [
        "",
        "metadata",
        "metadata/",
        "targets/models",
        "metadata/root.json",
        "metadata/0.root.json",
        "metadata/1.root.json/",
        "metadata/../keys/root.json",
        "metadata/%2e%2e/keys/root.json",
        "..%2f..%2fkeys%2fonline%2ftargets-1.pem",
        "targets/models/detector/../../../keys/root.json",
        "targets/models/detector/1.0.0/manifest.json",
        "targets/models/detector/1.0.0/" + "0" * 64 + ".",
        "targets/models/detector/1.0.0/" + "0" * 64 + ".none",
        "targets/models/detector/1.0.0/" + "0" * 64 + "./../x",
        "metadata/timestamp.json%00.pem",
        "keys/online/targets-1.pem",
    ],
)
def test_everything_else_is_not_there(web: Web, path: str) -> None:
    answer = web.get(f"/{path}")
    assert (answer.status_code, answer.content) == (404, b"not found")


def test_paths_are_checked_below_http_too() -> None:
    for path in ("../keys/root.json", "metadata/1.root.json\n", "/metadata/timestamp.json", "metadata//timestamp.json"):
        with pytest.raises(NotFoundError):
            checked_path(path)
    assert checked_path("metadata/timestamp.json") == "metadata/timestamp.json"


def test_other_methods_are_refused(web: Web) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert web.get("/metadata/timestamp.json", method).status_code == 405


def test_one_address_cannot_take_all_turns(site: Site) -> None:
    web = Web(site, requests_per_minute=5)
    statuses = [web.get("/metadata/timestamp.json").status_code for _ in range(7)]
    web.close()
    assert statuses == [200] * 5 + [429] * 2


def test_a_store_that_fails_is_told_and_counted() -> None:
    class Failing:
        def size(self, path: str) -> int:
            raise StorageError("the store is away")

        def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
            raise StorageError("the store is away")

    counted = CollectorRegistry()
    caller = Caller(create_app(Failing(), RegistryMetrics(counted), requests_per_minute=1000))
    answer = caller.request("GET", "/metadata/timestamp.json")
    caller.close()
    assert (answer.status_code, answer.content) == (503, b"unavailable")
    assert counted.get_sample_value("bridge_registry_requests_total", {"status": "503"}) == 1
