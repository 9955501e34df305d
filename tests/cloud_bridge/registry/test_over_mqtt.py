"""What a bridge answers to `ota/request`: parts, refusals, and never more than it can afford."""

import time

import pytest
from prometheus_client import CollectorRegistry

from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.registry.errors import NotFoundError, StorageError
from cloud_bridge.registry.over_mqtt import (
    MAX_OF_ONE_DEVICE,
    MAX_PART_BYTES,
    STALE_SECONDS,
    Answerer,
    PartMetrics,
)
from gateway.wire.messages import FetchRequest, encode
from gateway.wire.parts import unpack_part

CONTENT = bytes(range(256)) * 10


class ServedFiles:
    """Files by path. Knob: `away`."""

    def __init__(self) -> None:
        self.files = {"metadata/timestamp.json": b"{}", "targets/models/x/abc.file": CONTENT}
        self.away = False
        self.sized = 0

    def read(self, path: str, offset: int, length: int) -> bytes:
        return self._find(path)[offset : offset + length]

    def size(self, path: str) -> int:
        self.sized += 1
        return len(self._find(path))

    def _find(self, path: str) -> bytes:
        if self.away:
            raise StorageError("the bucket is away")
        if path not in self.files:
            raise NotFoundError(path)
        return self.files[path]


@pytest.fixture
def files() -> ServedFiles:
    return ServedFiles()


@pytest.fixture
def answerer(files: ServedFiles) -> Answerer:
    return Answerer(files, "sluice", PartMetrics(CollectorRegistry()), time.monotonic_ns)


def request(path: str, offset: int = 0, length: int = 1000, request_id: str = "r-1") -> FetchRequest:
    return FetchRequest(request_id=request_id, path=path, offset=offset, length=length)


def message(payload: bytes, *, gateway: str = "gw-a", age_seconds: float = 0.0) -> Incoming:
    received_ns = time.monotonic_ns() - int(age_seconds * 1e9)
    return Incoming(f"sluice/v1/{gateway}/ota/request", payload, 1, 1, 1, received_ns, retained=False)


def test_a_part_comes_with_its_place_and_the_length_of_the_whole(answerer: Answerer) -> None:
    reply, content = unpack_part(answerer.answer(request("targets/models/x/abc.file", 100, 50)))
    assert content == CONTENT[100:150]
    assert (reply.request_id, reply.offset, reply.length, reply.total, reply.error) == (
        "r-1",
        100,
        50,
        len(CONTENT),
        "",
    )


@pytest.mark.parametrize("offset", [len(CONTENT), len(CONTENT) + 1, 2**62])
def test_behind_the_end_there_is_nothing_and_no_error(answerer: Answerer, offset: int) -> None:
    reply, content = unpack_part(answerer.answer(request("targets/models/x/abc.file", offset)))
    assert (content, reply.error, reply.total) == (b"", "", len(CONTENT))


@pytest.mark.parametrize(
    "path", ["targets/none", "metadata/../../etc/passwd", "/etc/passwd", "", "keys/root.pem", "metadata", "targets//x"]
)
def test_what_is_no_file_of_the_repository_is_not_found(answerer: Answerer, path: str) -> None:
    assert unpack_part(answerer.answer(request(path)))[0].error == "not-found"


def test_a_part_beyond_the_limit_is_refused(answerer: Answerer) -> None:
    too_large = request("targets/models/x/abc.file", length=MAX_PART_BYTES + 1)
    assert unpack_part(answerer.answer(too_large))[0].error == "too-large"


def test_a_store_that_is_away_is_unavailable_and_then_back(answerer: Answerer, files: ServedFiles) -> None:
    files.away = True
    assert unpack_part(answerer.answer(request("metadata/timestamp.json")))[0].error == "unavailable"
    files.away = False
    assert unpack_part(answerer.answer(request("metadata/timestamp.json")))[1] == b"{}"


def test_sizes_of_metadata_are_asked_each_time_and_those_of_targets_once(
    answerer: Answerer, files: ServedFiles
) -> None:
    for _ in range(3):
        answerer.answer(request("targets/models/x/abc.file"))
    assert files.sized == 1
    answerer.answer(request("metadata/timestamp.json"))
    files.files["metadata/timestamp.json"] = b'{"newer": 1}'
    assert unpack_part(answerer.answer(request("metadata/timestamp.json")))[1] == b'{"newer": 1}'


def test_old_malformed_and_excessive_requests_are_dropped_and_others_answered(answerer: Answerer) -> None:
    good = encode(request("metadata/timestamp.json"))
    flood = [message(good) for _ in range(10 * MAX_OF_ONE_DEVICE)]
    messages = [
        message(good, age_seconds=STALE_SECONDS + 1),
        message(b"nonsense"),
        *flood,
        message(good, gateway="gw-b"),
    ]
    topics = [topic for topic, _ in answerer.replies(messages)]
    assert topics == ["sluice/v1/gw-a/ota/reply"] * MAX_OF_ONE_DEVICE + ["sluice/v1/gw-b/ota/reply"]
