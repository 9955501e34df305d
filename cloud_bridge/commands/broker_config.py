"""`broker-config`: a configuration for mosquitto in which a device can be nobody else."""

import grp
import os
import shutil
import time
from pathlib import Path

import click

from cloud_bridge.commands.options import Place, placed, say
from cloud_bridge.identity.broker import BrokerPlan
from cloud_bridge.identity.component import open_identities
from cloud_bridge.identity.devices import denied_gateways, revoked_certificates
from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.issuer import utc


@click.command("broker-config")
@placed
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Write the files here.")
@click.option("--name", "names", multiple=True, help="Host name or address of the broker; may be given again.")
@click.option("--device-port", type=click.IntRange(1, 65535), default=8883, show_default=True)
@click.option("--device-address", help="Listen for devices on this address; default: on all.")
@click.option("--service-port", type=click.IntRange(1, 65535), default=8884, show_default=True, help="For the bridge.")
@click.option("--service-address", default="127.0.0.1", show_default=True, help="Where the bridge comes from.")
@click.option(
    "--state-directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/var/lib/mosquitto"),
    show_default=True,
    help="Where the broker keeps what it queues.",
)
@click.option("--max-connections", type=click.IntRange(1), default=20_000, show_default=True, help="Of devices.")
@click.option("--group", help="The group of the broker's user, e.g. mosquitto: it may read the broker's key.")
def broker_config(
    file: Path | None,
    store_url: str | None,
    *,
    out: Path,
    names: tuple[str, ...],
    device_port: int,
    device_address: str | None,
    service_port: int,
    service_address: str,
    state_directory: Path,
    max_connections: int,
    group: str | None,
) -> None:
    """Write mosquitto.conf, access rules, certificates, revocation list, OpenSSL settings and systemd units.

    Run it as the bridge's user, or as root. With `identity.broker_directory` set to the same directory the running
    bridge keeps certificates and revocation list fresh.
    """
    config = Place(file, store_url).config()
    identities = open_identities(config, time.time_ns)
    try:
        plan = BrokerPlan(
            directory=out.absolute(),
            names=tuple(dict.fromkeys((*names, "localhost", "127.0.0.1"))),
            root=config.ingest.root,
            device_address=device_address,
            device_port=device_port,
            service_address=service_address,
            service_port=service_port,
            max_connections=max_connections,
            state_directory=state_directory.absolute(),
        )
        now_ns = time.time_ns()
        with identities.database.transaction() as tx:
            revoked, denied = revoked_certificates(tx, now_ns), denied_gateways(tx, now_ns)
        identities.broker_files(out).write_all(plan, revoked, utc(now_ns), denied)
    finally:
        identities.database.close()
    if group is not None:
        _share(out, group)
    settings = identities.settings
    host = names[0] if names else "localhost"
    say(f"written to {out}; to use it:")
    say(f"  install -D {out}/systemd/sluice.conf /etc/systemd/system/mosquitto.service.d/sluice.conf")
    say(f"  install {out}/systemd/sluice-broker-*.path {out}/systemd/sluice-broker-*.service /etc/systemd/system/")
    say("  systemctl daemon-reload && systemctl restart mosquitto")
    say("  systemctl enable --now sluice-broker-reload.path sluice-broker-restart.path")
    say(f"devices: mqtts://{host}:{device_port}; in the bridge's configuration:")
    say(f"  brokers: [{{url: 'mqtts://localhost:{service_port}', ca_file: {out}/services-ca.pem,")
    say(f"             certificate_file: {out}/bridge.pem, key_file: {out}/bridge-key.pem}}]")
    if settings.broker_directory is None or settings.broker_directory.absolute() != out.absolute():
        say(f"  identity: {{broker_directory: {out}}}   # or revocations will not reach the broker")


def _share(directory: Path, group: str) -> None:
    """Let a group read the directory and the broker's key; what is renewed later takes the group over."""
    try:
        grp.getgrnam(group)
    except KeyError as error:
        raise IdentityError(f"there is no group {group} on this machine") from error
    try:
        for path in (directory, directory / "broker-key.pem"):
            shutil.chown(path, group=group)
        os.chmod(directory, 0o2750)  # noqa: PTH101, S103  # with the bit that hands the group on
        (directory / "broker-key.pem").chmod(0o640)
    except OSError as error:
        raise IdentityError(f"{directory}: {error.strerror or error}; only root can give files to {group}") from error
