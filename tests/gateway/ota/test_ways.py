"""The ways themselves: directories that anybody may have made, certificates, and parts over a broker."""

import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.config import Ota
from gateway.errors import ConfigError
from gateway.identity.errors import IdentityError
from gateway.ota.errors import NotThereError, RangeIgnoredError, TrustError, UnreachableError
from gateway.ota.ways import DirectoryWay
from gateway.ota.ways_https import HttpsWay
from gateway.ota.ways_mqtt import PART_BYTES, TRIES, MqttWay
from gateway.ota.ways_open import open_way
from gateway.wire.messages import FetchReply, FetchRequest, decode
from gateway.wire.parts import pack_part
from tests.gateway.ota.trust_rig import Device
from tests.simulators.authority import Authority
from tests.simulators.hostile_repository import HostileServer, Knobs, SignedRepository

CONTENT = os.urandom(1_000_000)


# ---- a directory ---------------------------------------------------------------------------------------------------


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    stick = tmp_path / "stick"
    (stick / "targets" / "models").mkdir(parents=True)
    (stick / "targets" / "file").write_bytes(CONTENT)
    (tmp_path / "secret").write_text("secret")
    return stick


def test_a_directory_gives_any_part_of_a_file(stick: Path) -> None:
    way = DirectoryWay(stick)
    assert b"".join(way.read("targets/file", 0, 1 << 30)) == CONTENT
    assert b"".join(way.read("targets/file", 999_990, 100)) == CONTENT[-10:]
    assert b"".join(way.read("targets/file", 10, 5)) == CONTENT[10:15]
    assert list(way.read("targets/file", len(CONTENT), 5)) == []


@pytest.mark.parametrize(
    "path", ["../secret", "targets/../../secret", "/etc/passwd", "", "targets//file", "targets/.x"]
)
def test_a_path_out_of_the_directory_is_not_there(stick: Path, path: str) -> None:
    with pytest.raises(NotThereError):
        list(DirectoryWay(stick).read(path, 0, 10))


@pytest.mark.parametrize("kind", ["file", "directory", "parent"])
def test_a_link_is_not_followed_on_any_level(stick: Path, tmp_path: Path, kind: str) -> None:
    match kind:
        case "file":
            (stick / "targets" / "link").symlink_to(tmp_path / "secret")
            path = "targets/link"
        case "directory":
            (stick / "targets" / "link").symlink_to(tmp_path)
            path = "targets/link/secret"
        case _:
            (stick / "metadata").symlink_to(tmp_path)
            path = "metadata/secret"
    assert (stick / path).read_text() == "secret"  # control: whoever opens it by its name gets it
    with pytest.raises(NotThereError):
        list(DirectoryWay(stick).read(path, 0, 10))


def test_a_pipe_a_socket_and_a_directory_are_no_files_and_nobody_waits_for_them(stick: Path) -> None:
    os.mkfifo(stick / "targets" / "pipe")
    with socket.socket(socket.AF_UNIX) as peer:
        peer.bind(str(stick / "targets" / "socket"))
        for name in ("pipe", "socket", "models", "missing"):
            with pytest.raises(NotThereError):
                list(DirectoryWay(stick).read(f"targets/{name}", 0, 10))


def test_a_stick_that_was_pulled_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="metadata"):
        list(DirectoryWay(tmp_path / "gone").read("targets/file", 0, 10))


def test_a_file_of_a_terabyte_is_read_only_as_far_as_asked(stick: Path) -> None:
    with (stick / "targets" / "huge").open("wb") as out:
        out.truncate(1 << 40)
    assert sum(map(len, DirectoryWay(stick).read("targets/huge", 0, 100_000))) == 100_000


# ---- HTTPS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[HostileServer, Authority]]:
    authority = Authority(tmp_path / "authority", "services")
    authority.issue(tmp_path / "server.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    with HostileServer({"targets/file": CONTENT}, context=context).running() as server:
        yield server, authority


def test_the_repository_is_asked_with_the_certificate_of_the_hour(
    secured: tuple[HostileServer, Authority], tmp_path: Path
) -> None:
    server, authority = secured
    authority.issue(tmp_path / "hour.pem", host="gw-a")

    def identity() -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        context.load_cert_chain(tmp_path / "hour.pem")
        return context

    way = HttpsWay(server.url, identity, monotonic_ns=time.monotonic_ns)
    assert b"".join(way.read("targets/file", 0, 1 << 30)) == CONTENT
    way.close()
    without = open_way(
        Ota(root_file=tmp_path / "root.json", url=server.url, ca_file=authority.ca_file),
        monotonic_ns=time.monotonic_ns,
    )
    with pytest.raises(UnreachableError):  # control: the server wants one
        list(without.read("targets/file", 0, 10))
    without.close()


def test_many_parts_of_a_file_cost_one_handshake(secured: tuple[HostileServer, Authority], tmp_path: Path) -> None:
    """RAUC streams a bundle in thousands of parts, and takes of each no byte more than it has asked for."""
    server, authority = secured
    authority.issue(tmp_path / "hour.pem", host="gw-a")

    def identity() -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        context.load_cert_chain(tmp_path / "hour.pem")
        return context

    way = HttpsWay(server.url, identity, monotonic_ns=time.monotonic_ns)
    for offset in range(0, 500_000, 100_000):
        got, pieces = b"", way.read("targets/file", offset, 100_000)
        while len(got) < 100_000:
            got += next(pieces)
        pieces.close()
        assert got == CONTENT[offset : offset + 100_000]
    assert server.connections == 1
    next(way.read("targets/file", 0, 100_000))  # control: who leaves in the middle has to connect anew
    assert b"".join(way.read("targets/file", 0, 10)) == CONTENT[:10]
    assert server.connections == 2
    way.close()


def test_a_server_of_another_authority_is_not_asked(secured: tuple[HostileServer, Authority], tmp_path: Path) -> None:
    server, _ = secured
    other = Authority(tmp_path / "other", "other")
    way = open_way(
        Ota(root_file=tmp_path / "root.json", url=server.url, ca_file=other.ca_file), monotonic_ns=time.monotonic_ns
    )
    with pytest.raises(UnreachableError, match="certificate"):
        list(way.read("targets/file", 0, 10))
    assert server.requests == []


def test_without_a_certificate_the_source_is_unreachable_for_now() -> None:
    def identity() -> ssl.SSLContext:
        raise IdentityError("this gateway has no certificate yet")

    way = HttpsWay("https://127.0.0.1:1", identity, monotonic_ns=time.monotonic_ns)
    with pytest.raises(UnreachableError, match="no certificate yet"):
        list(way.read("targets/file", 0, 10))


def test_a_certificate_file_that_is_gone_is_told(tmp_path: Path) -> None:
    settings = Ota(root_file=tmp_path / "root.json", url="https://127.0.0.1:1", ca_file=tmp_path / "gone.pem")
    with pytest.raises(UnreachableError, match="certificates"):
        list(open_way(settings, monotonic_ns=time.monotonic_ns).read("targets/file", 0, 10))


@pytest.mark.parametrize("url", ["http://bridge:8472", "bridge", "https://", "https://bridge/?x=1"])
def test_an_address_that_is_not_https_is_a_mistake(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"ota\.url"):
        open_way(Ota(root_file=tmp_path / "root.json", url=url), monotonic_ns=time.monotonic_ns)


def test_a_directory_that_is_no_repository_is_told_with_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match="name a directory with `metadata` and `targets` in it"):
        list(DirectoryWay(tmp_path).read("metadata/timestamp.json", 0, 10))
    (tmp_path / "metadata").mkdir()  # a file that is not in a repository is no mistake of whoever named it
    with pytest.raises(NotThereError, match=r"timestamp\.json: No such file or directory$"):
        list(DirectoryWay(tmp_path).read("metadata/timestamp.json", 0, 10))


def test_a_site_without_any_way_is_told_to_import(tmp_path: Path) -> None:
    way = open_way(Ota(root_file=tmp_path / "root.json"), monotonic_ns=time.monotonic_ns)
    with pytest.raises(UnreachableError, match="gateway ota import"):
        list(way.read("metadata/timestamp.json", 0, 10))


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 403, 429, 500, 502, 503])
def test_an_answer_that_is_no_file_is_unreachable_and_a_redirect_not_followed(status: int) -> None:
    with HostileServer({"targets/file": CONTENT}, Knobs(status=status)).running() as server:
        server.knobs.location = f"{server.url}/targets/file"
        way = HttpsWay(server.url, monotonic_ns=time.monotonic_ns, schemes=("http",))
        with pytest.raises(UnreachableError, match=str(status)):
            list(way.read("targets/file", 0, 10))
        assert len(server.requests) == 1
        server.knobs.status = 404
        with pytest.raises(NotThereError):
            list(way.read("targets/file", 0, 10))
        server.knobs.status = None
        assert b"".join(way.read("targets/file", 5, 10)) == CONTENT[5:15]
        with pytest.raises(RangeIgnoredError):
            list(way.read("targets/file", len(CONTENT) + 5, 10))
        way.close()


@pytest.mark.parametrize(("words", "connections"), [(b"", 1), (b"not found", 1), (b"x" * 5000, 3)])
def test_a_file_that_is_not_there_costs_no_connection_unless_its_answer_is_long(words: bytes, connections: int) -> None:
    with HostileServer({"targets/file": CONTENT}, Knobs(only="root", words=words)).running() as server:
        way = HttpsWay(server.url, monotonic_ns=time.monotonic_ns, schemes=("http",))
        for _ in range(2):
            with pytest.raises(NotThereError):
                list(way.read("metadata/2.root.json", 0, 100))
            assert b"".join(way.read("targets/file", 0, 1 << 30)) == CONTENT
        way.close()
        assert server.connections == connections


# ---- over a broker, simulated --------------------------------------------------------------------------------------


class Parts:
    """A bridge behind a broker, as bad as wished. Knobs: which share of replies is lost, repeated, late, or spoiled."""

    def __init__(self, files: dict[str, bytes], seed: int = 1) -> None:
        self.files = files
        self.draw = random.Random(seed).random
        self.connected = True
        self.lost = self.repeated = self.foreign = 0.0
        self.error = ""
        self.at_most: int | None = None
        self.reorder = False
        self.total_lie = 0
        self.most_in_flight = self.in_flight = self.requests = 0
        self._held: list[bytes] = []
        self._lock = threading.Lock()

    def listen(self, take: Callable[[bytes], None]) -> None:
        self.take = take

    def send(self, payload: bytes) -> bool:
        if not self.connected:
            return False
        request = decode(payload, FetchRequest)
        with self._lock:
            self.requests += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        threading.Timer(0.002, self._answer, [request]).start()
        return True

    def _answer(self, request: FetchRequest) -> None:
        with self._lock:
            self.in_flight -= 1
            content = self.files.get(request.path)
            error = self.error or ("not-found" if content is None else "")
            length = min(request.length, self.at_most or request.length)
            part = b"" if error else (content or b"")[request.offset : request.offset + length]
            reply = FetchReply(
                request_id=request.request_id,
                path=request.path,
                offset=request.offset,
                length=len(part),
                total=len(content or b"") + self.total_lie,
                error=error,
            )
            if self.draw() < self.lost:
                return
            payloads = [pack_part(reply, part)]
            if self.draw() < self.repeated:
                payloads *= 2
            if self.draw() < self.foreign:
                payloads.insert(0, b"SLB1 nonsense")
                payloads.insert(0, pack_part(FetchReply(request_id="not-asked", path=request.path, offset=0)))
            if self.reorder and not self._held:
                self._held = payloads
                return
            payloads, self._held = payloads + self._held, []
        for payload in payloads:
            self.take(payload)


def over(parts: Parts, answer_seconds: float = 0.2) -> MqttWay:
    return MqttWay(parts, monotonic_ns=time.monotonic_ns, answer_seconds=answer_seconds)


def test_parts_make_the_file_and_few_are_on_their_way_at_once() -> None:
    parts = Parts({"targets/file": CONTENT})
    assert b"".join(over(parts).read("targets/file", 0, len(CONTENT) + 1)) == CONTENT
    assert b"".join(over(parts).read("targets/file", 777_777, 1000)) == CONTENT[777_777:778_777]
    assert parts.most_in_flight <= 4
    assert parts.requests < len(CONTENT) / PART_BYTES[0] / 2  # parts have grown


def test_a_small_file_takes_one_request() -> None:
    parts = Parts({"metadata/timestamp.json": b"{}"})
    assert list(over(parts).read("metadata/timestamp.json", 0, 16_385)) == [b"{}"]
    assert parts.requests == 1


@pytest.mark.parametrize("seed", range(3))
def test_lost_repeated_reordered_and_foreign_replies_do_no_harm(seed: int) -> None:
    parts = Parts({"targets/file": CONTENT}, seed)
    parts.lost, parts.repeated, parts.foreign, parts.reorder = 0.1, 0.3, 0.3, True
    way = over(parts)
    assert b"".join(way.read("targets/file", 0, len(CONTENT) + 1)) == CONTENT
    assert way.ignored > 0


def test_a_bridge_that_sends_less_than_asked_is_asked_for_the_rest() -> None:
    parts = Parts({"targets/file": CONTENT[:100_000]})
    parts.at_most = 7_000
    assert b"".join(over(parts).read("targets/file", 0, 100_001)) == CONTENT[:100_000]


@pytest.mark.parametrize(("error", "kind"), [("not-found", NotThereError), ("unavailable", UnreachableError)])
def test_a_refusal_is_told(error: str, kind: type[Exception]) -> None:
    parts = Parts({"targets/file": CONTENT})
    parts.error = error
    with pytest.raises(kind):
        list(over(parts).read("targets/file", 0, 10))


def test_a_bridge_that_never_answers_is_given_up() -> None:
    parts = Parts({"targets/file": CONTENT})
    parts.lost = 1.0
    with pytest.raises(UnreachableError, match="over_mqtt"):
        list(over(parts, 0.05).read("targets/file", 0, 10))
    assert parts.requests == TRIES
    parts.connected = False
    with pytest.raises(UnreachableError, match="no connection"):
        list(over(parts).read("targets/file", 0, 10))


def test_a_bridge_that_promises_more_than_it_has_is_given_up() -> None:
    parts = Parts({"targets/file": CONTENT[:50_000]})
    parts.total_lie = 1000
    with pytest.raises(UnreachableError, match="nothing at byte"):
        list(over(parts).read("targets/file", 0, 60_000))


def test_what_comes_over_the_broker_is_verified_like_everything_else(tmp_path: Path) -> None:
    served = SignedRepository()
    path = served.add_release("press", "1.0.0", sealed=CONTENT)
    served.publish()
    (tmp_path / "state").mkdir()
    device = Device(tmp_path / "state", served, tmp_path / "stick")
    parts = Parts(served.files)
    repository = device.repository(over(parts))
    repository.refresh()
    wanted = repository.target(path)
    good, served.files[served.place(path)] = CONTENT, CONTENT[:-1] + b"\0"
    with pytest.raises(TrustError):
        repository.fetch(wanted, tmp_path / "got")
    served.files[served.place(path)] = good
    assert repository.fetch(wanted, tmp_path / "got").read_bytes() == CONTENT
