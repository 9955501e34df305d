"""The three commands as the public TUF conformance suite drives them: processes, exit status, files and requests."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.simulators.hostile_repository import HostileServer, SignedRepository


class Client:
    """Runs the commands with a metadata directory and an artefact directory of its own."""

    def __init__(self, directory: Path, server: HostileServer, served: SignedRepository) -> None:
        self.metadata = directory / "metadata"
        self.artefacts = directory / "targets"
        self.server = server
        self.served = served
        self.root = directory / "initial_root.json"
        self.root.write_bytes(served.anchor)

    def run(self, *arguments: str, faketime: datetime | None = None) -> int:
        prefix = ["faketime", f"{faketime:%Y-%m-%d %H:%M:%S}"] if faketime is not None else []
        command = [*prefix, sys.executable, "-m", "gateway.ota.conformance", "--metadata-dir", str(self.metadata)]
        return subprocess.run([*command, *arguments], check=False, timeout=60).returncode

    def init(self) -> int:
        return self.run("init", str(self.root))

    def refresh(self, faketime: datetime | None = None) -> int:
        return self.run("--metadata-url", f"{self.server.url}/metadata", "refresh", faketime=faketime)

    def download(self, target: str) -> int:
        options = {
            "--metadata-url": f"{self.server.url}/metadata",
            "--target-name": target,
            "--target-base-url": f"{self.server.url}/targets",
            "--target-dir": str(self.artefacts),
        }
        return self.run(*(word for option in options.items() for word in option), "download")

    def asked(self) -> list[str]:
        paths = [request.path for request in self.server.requests]
        self.server.requests.clear()
        return paths


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    served = SignedRepository(datetime.now(UTC))
    with HostileServer(served.files).running() as server:
        yield Client(tmp_path, server, served)


def test_init_and_refresh_ask_in_the_order_of_the_workflow(client: Client) -> None:
    assert client.init() == 0
    assert client.asked() == []
    assert client.refresh() == 0
    assert client.asked() == [
        "metadata/2.root.json",
        "metadata/timestamp.json",
        "metadata/1.snapshot.json",
        "metadata/1.targets.json",
    ]
    names = {file.name for file in client.metadata.glob("*.json")}
    assert names == {"root.json", "timestamp.json", "snapshot.json", "targets.json"}
    assert client.refresh() == 0
    assert client.asked() == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_a_download_refreshes_and_is_not_repeated_while_the_file_is_good(client: Client) -> None:
    client.served.add_file("dir/a file+more", b"content")
    client.served.publish()
    assert client.init() == 0
    assert client.download("nonexistent") == 1
    assert client.asked()[-1] == "metadata/2.targets.json"
    assert client.download("dir/a file+more") == 0
    (got,) = client.artefacts.iterdir()
    assert got.read_bytes() == b"content"
    assert any(path.startswith("targets/") for path in client.asked())
    assert client.download("dir/a file+more") == 0
    assert not any(path.startswith("targets/") for path in client.asked())
    client.served.add_file("dir/a file+more", b"changed")
    client.served.publish()
    assert client.download("dir/a file+more") == 0
    assert [file.read_bytes() for file in client.artefacts.iterdir()] == [b"changed"]


def test_failures_end_with_one(client: Client) -> None:
    client.root.write_text("{}")
    client.init()
    assert client.refresh() == 1
    assert client.asked() == []


@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed: apt-get install faketime")
def test_an_expired_repository_is_refused_at_a_later_time(client: Client) -> None:
    assert client.init() == 0
    assert client.refresh() == 0
    assert client.refresh(datetime.now(UTC) + timedelta(days=9)) == 1
    assert client.refresh() == 0
