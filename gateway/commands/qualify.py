"""`gateway qualify-storage`: can this card, stick or drive be trusted with the outbox?"""

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from gateway.commands.options import Number
from gateway.commands.output import say
from gateway.errors import OutboxError
from gateway.outbox.medium import Tell, Timing, acknowledgements, verify, write
from gateway.wire.plain import so_many

_SUSPICIOUS_SECONDS = 0.0002
_CONNECT_SECONDS = 10.0
_MISSING_EXIT = 1

_directory = click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
_witness = click.option(
    "--witness",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file on another medium, or on another machine.",
)


@click.group("qualify-storage")
def command() -> None:
    """Find out whether a medium keeps what it says it has written. It takes a plug, and a person who pulls it.

    \b
    1. on another machine:   gateway qualify-storage listen --port 7070 --witness heard.txt
    2. on the device:        gateway qualify-storage write /var/lib/sluice --host 192.0.2.1:7070
    3. pull the plug while it writes; put it back in
    4. on the device, with heard.txt:
                             gateway qualify-storage verify /var/lib/sluice --witness heard.txt

    Do it ten times at least. A medium that passes may still lie in the next cut; one that fails once is not fit.
    """


@command.command("write")
@_directory
@click.option("--minutes", type=Number(min=0, min_open=True), default=10.0, show_default=True)
@click.option("--host", metavar="ADDRESS:PORT", help="Where `listen` runs.")
@_witness
def write_command(directory: Path, minutes: float, host: str | None, witness: Path | None) -> None:
    """Write and sync numbered blocks, and tell each number elsewhere once its sync has returned."""
    if (host is None) == (witness is None):
        raise click.UsageError("name one witness: --host ADDRESS:PORT, or --witness FILE on another medium")
    if witness is not None and witness.absolute().parent.stat().st_dev == directory.stat().st_dev:
        raise click.UsageError(f"{witness} is on the medium that is to be tested: the plug would take it along")
    with _telling(host, witness) as tell:
        say("writing; pull the plug at any moment", err=True)
        timing = write(directory, minutes * 60, tell)
    _show(timing)


@command.command("listen")
@click.option("--port", type=click.IntRange(1, 65535), required=True)
@click.option("--address", default="0.0.0.0", show_default=True, help="Where to listen.")  # noqa: S104 - the device is elsewhere
@click.option(
    "--witness", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Where to write it down."
)
def listen_command(port: int, address: str, witness: Path) -> None:
    """Write down what a device tells, until it is silent for good or Ctrl-C."""
    with socket.create_server((address, port)) as listener, witness.open("a", encoding="ascii", buffering=1) as out:
        say(f"listening on {address}:{port}", err=True)
        connection, peer = listener.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with connection, connection.makefile("r", encoding="ascii") as lines:
            say(f"{peer[0]} writes", err=True)
            with contextlib.suppress(ConnectionError, KeyboardInterrupt):
                out.writelines(lines)
    say(f"the device is silent; now run verify there with {witness}", err=True)


@command.command("verify")
@_directory
@click.option("--witness", type=click.Path(path_type=Path, dir_okay=False, exists=True), required=True)
def verify_command(directory: Path, witness: Path) -> None:
    """Look for every block that the witness has heard of; exit status 1 if one is missing."""
    with witness.open(encoding="ascii", errors="replace") as lines:
        told = acknowledgements(lines)
    if told is None:
        raise OutboxError(f"{witness}: it has heard of nothing: write first, and name the file that `listen` wrote")
    finding = verify(directory, *told)
    if finding.missing:
        say(
            f"NOT FIT: {len(finding.missing)} of {so_many(finding.checked, 'block')} are gone whose sync had returned, "
            f"the first is number {finding.missing[0]} of {finding.acknowledged}: this medium, or its controller, lies"
        )
        sys.exit(_MISSING_EXIT)
    say(f"all {finding.checked} blocks are there, up to number {finding.acknowledged}; this cut lost nothing")


@contextlib.contextmanager
def _telling(host: str | None, witness: Path | None) -> Iterator[Tell]:
    """Give what tells the witness."""
    if witness is not None:
        with witness.open("a", encoding="ascii", buffering=1) as out:

            def tell(run: str, number: int) -> None:
                out.write(f"{run} {number}\n")

            yield tell
        return
    assert host is not None
    name, _, port = host.rpartition(":")
    if not name or not port.isdigit():
        raise click.UsageError(f"--host {host}: expected ADDRESS:PORT")
    try:
        with socket.create_connection((name, int(port)), timeout=_CONNECT_SECONDS) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield lambda run, number: connection.sendall(f"{run} {number}\n".encode("ascii"))
    except OSError as error:
        raise OutboxError(
            f"{host}: {error.strerror or error}: run `gateway qualify-storage listen` there first"
        ) from error


def _show(timing: Timing) -> None:
    say(
        f"{so_many(timing.count, 'sync')}: median {timing.median * 1000:.2f} ms, p99 {timing.p99 * 1000:.2f} ms, "
        f"longest {timing.longest * 1000:.0f} ms"
    )
    if timing.median < _SUSPICIOUS_SECONDS:
        say("faster than flash can be: a battery-backed cache, a virtual disk, or a medium that does not sync")
    say("this says how fast it is; whether it tells the truth shows only when the plug is pulled while it writes")
