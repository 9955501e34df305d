"""`python -m gateway.ota.conformance`: this client behind the three commands of the public TUF conformance suite.

    … --metadata-dir DIR init ROOT
    … --metadata-dir DIR --metadata-url URL refresh
    … --metadata-dir DIR --metadata-url URL --target-name T --target-base-url URL --target-dir DIR download

Exit status 0 when all went well, 1 otherwise. It is the code of the device, with plain HTTP allowed, which is what the
suite serves, and with nothing but the machine's clock, which is what it moves. Delegated roles are not followed: the
repositories of this product have none.
"""

import logging
import platform
import shutil
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import click
import structlog

from gateway.config import Ota
from gateway.errors import GatewayError
from gateway.ota.errors import NotThereError
from gateway.ota.fetch import Repository
from gateway.ota.fetch_budget import Unmetered
from gateway.ota.trust_store import MetadataFiles
from gateway.ota.ways_https import HttpsWay

ANCHOR: Final = ".anchor"
FLOORS: Final = ".floors"


class TwoServers:
    """Metadata from one address, targets from another."""

    counted_elsewhere = False

    def __init__(self, metadata_url: str, targets_url: str | None) -> None:
        self._ways = {
            kind: HttpsWay(url, monotonic_ns=time.monotonic_ns, schemes=("http", "https"))
            for kind, url in (("metadata", metadata_url), ("targets", targets_url))
            if url is not None
        }

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        """See `Way.read`."""
        kind, _, rest = path.partition("/")
        if kind not in self._ways:
            raise NotThereError(f"{path}: no address is given for it")
        return self._ways[kind].read(rest, offset, limit)

    def close(self) -> None:
        """See `Way.close`."""
        for way in self._ways.values():
            way.close()


@click.command()
@click.option("--metadata-dir", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--metadata-url")
@click.option("--target-name")
@click.option("--target-base-url")
@click.option("--target-dir", type=click.Path(path_type=Path, file_okay=False))
@click.argument("command", type=click.Choice(["init", "refresh", "download"]))
@click.argument("root", type=click.Path(path_type=Path), required=False)
def main(
    *,
    metadata_dir: Path,
    metadata_url: str | None,
    target_name: str | None,
    target_base_url: str | None,
    target_dir: Path | None,
    command: str,
    root: Path | None,
) -> None:
    """Do one COMMAND as a client of a TUF repository; `init` takes the trusted ROOT."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        if command == "init":
            if root is None:
                raise click.UsageError("init needs the trusted root")
            metadata_dir.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root, metadata_dir / ANCHOR)
            shutil.copyfile(root, metadata_dir / "root.json")
            return
        if metadata_url is None:
            raise click.UsageError(f"{command} needs --metadata-url")
        way = TwoServers(metadata_url, target_base_url)
        try:
            repository = _repository(metadata_dir, way)
            repository.refresh()
            if command == "download":
                if target_name is None or target_dir is None:
                    raise click.UsageError("download needs --target-name and --target-dir")
                repository.fetch(repository.target(target_name), target_dir / quote(target_name, ""))
        finally:
            way.close()
    except GatewayError as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(1)


def _repository(metadata_dir: Path, way: TwoServers) -> Repository:
    return Repository(
        Ota(root_file=metadata_dir / ANCHOR, hardware=platform.machine()),
        metadata_dir / ".state",
        way,
        meter=Unmetered(),
        now_ns=time.time_ns,
        monotonic_ns=time.monotonic_ns,
        files=MetadataFiles(metadata_dir, metadata_dir / FLOORS),
        built_ns=0,
    )


if __name__ == "__main__":
    main()
