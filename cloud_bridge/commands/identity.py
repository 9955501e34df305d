"""`identity`: who is enrolled, who may enrol, which boot states are approved, who gets which content key."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cloud_bridge.commands.carriage import Carriage, Claimed
from cloud_bridge.commands.identity_words import (
    claim_plain,
    device_line,
    device_plain,
    event_line,
    event_plain,
    key_plain,
    state_plain,
)
from cloud_bridge.commands.options import MAX_NUMBER, Place, placed, put, say, say_line
from cloud_bridge.identity.approvals import Approval, approve, disapprove, list_approvals
from cloud_bridge.identity.attestation import key_digest
from cloud_bridge.identity.claims import Claim, add_claim, drop_claims, id_of_ek, id_of_token, list_claims, new_token
from cloud_bridge.identity.component import Identities, open_identities
from cloud_bridge.identity.contentkeys import ContentKey
from cloud_bridge.identity.database import Transaction
from cloud_bridge.identity.devices import find_device, list_devices, revoke_device
from cloud_bridge.identity.endorsement import spki_of
from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.events import Happening, find_event, list_events, note
from cloud_bridge.identity.files import create_file
from cloud_bridge.identity.issuers import described
from cloud_bridge.identity.states import BootState, pcrs_of, read_pcrs
from gateway.wire.identity import ClaimCode
from gateway.wire.plain import so_many
from gateway.wire.times import rfc3339
from gateway.wire.topics import GATEWAY_ID

F = TypeVar("F", bound=Callable[..., Any])

_PERIOD: Final = re.compile(r"(\d{1,6})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_as_json = click.option("--json", "as_json", is_flag=True, help="JSON, one line for each.")


class _Period(click.ParamType[int]):
    """A length of time as seconds."""

    name = "period"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = value if isinstance(value, int) else None
        match = _PERIOD.fullmatch(str(value))
        if match:
            found = int(match[1]) * _SECONDS[match[2]]
        return found if found else self.fail(f"{value!r} is not like 30m, 12h or 7d", param, ctx)


class _Gateway(click.ParamType[str]):
    """The id of a gateway."""

    name = "gateway"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if GATEWAY_ID.fullmatch(str(value)) is None:
            self.fail(f"{value!r} is no id of a gateway: a-z, 0-9 and -, up to 63 of them", param, ctx)
        return str(value)


@dataclass(frozen=True, slots=True)
class _Desk:
    """An operator at work: everything in one transaction."""

    identities: Identities
    tx: Transaction
    now_ns: int

    def note(self, gateway: str, kind: str, detail: str) -> None:
        """Remember what was done."""
        note(self.tx, Happening(gateway, kind, "operator", detail, {}, proven=True), self.now_ns)


@contextmanager
def _opened(file: Path | None, store_url: str | None) -> Iterator[Identities]:
    identities = open_identities(Place(file, store_url).config(), time.time_ns)
    try:
        yield identities
    finally:
        identities.database.close()


@contextmanager
def _desk(file: Path | None, store_url: str | None) -> Iterator[_Desk]:
    with _opened(file, store_url) as identities, identities.database.transaction() as tx:
        yield _Desk(identities, tx, identities.clock())


@click.group()
def identity() -> None:
    """Devices: who they are, who may enrol, which boot states are approved, who gets which key."""


@identity.command()
@placed
@_as_json
def status(file: Path | None, store_url: str | None, *, as_json: bool) -> None:
    """Show how enrolment and attestation are set up, and how the devices are."""
    with _desk(file, store_url) as desk:
        settings = desk.identities.settings
        found = list_devices(desk.tx)
        plain: dict[str, Any] = {
            "trust_domain": settings.trust_domain,
            "fingerprint": desk.identities.ca.services_fingerprint,
            "software_allowed": settings.allow_software,
            "ek_certificates_checked": settings.ek_roots is not None,
            "pcrs": sorted(set(settings.pcrs)),
            "states": len(list_approvals(desk.tx)),
            "devices": len(found),
            "certified": sum(1 for one in found if one.certified_until_ns > desk.now_ns and one.revoked_ns is None),
            "revoked": sum(1 for one in found if one.revoked_ns is not None),
            "software_devices": sum(1 for one in found if one.level == "software"),
            "authority": described(settings),
            "authority_until": f"{desk.identities.issuer.until:%Y-%m-%d}",
        }
    if as_json:
        put(plain)
        return
    say(f"trust domain {plain['trust_domain']}, fingerprint {plain['fingerprint']}")
    if plain["authority"] != "local":
        say(f"devices are signed by: {plain['authority']}, whom brokers trust until {plain['authority_until']}")
    say(f"{so_many(plain['devices'], 'device')}, {plain['certified']} certified now, {plain['revoked']} revoked")
    say(f"{so_many(plain['states'], 'approved boot state')} over PCR {', '.join(map(str, settings.pcrs))}")
    if plain["software_allowed"]:
        say(
            f"WARNING: devices without a TPM are let in ({plain['software_devices']} of them);"
            " their keys can be copied. Set identity.allow_software: false"
        )
    if not plain["ek_certificates_checked"]:
        say("warning: no root of a TPM maker is trusted, a claim token alone vouches; see identity.ek_roots")
    if not plain["states"]:
        say("no boot state is approved: no device with a TPM gets a certificate; see `identity states add`")


@identity.command("ca")
@placed
@click.option("--devices", is_flag=True, help="The authority of the devices instead, which brokers must trust.")
def authority(file: Path | None, store_url: str | None, *, devices: bool) -> None:
    """Print the authority that devices must trust, as PEM."""
    with _opened(file, store_url) as identities:
        say((identities.issuer.bundle_pem if devices else identities.ca.services_pem).decode("ascii"), nl=False)


@identity.command("devices")
@placed
@_as_json
def devices_(file: Path | None, store_url: str | None, *, as_json: bool) -> None:
    """List the devices that are enrolled."""
    with _desk(file, store_url) as desk:
        found, now_ns = list_devices(desk.tx), desk.now_ns
    for device in found:
        if as_json:
            put(device_plain(device))
        else:
            say_line(device_line(device, now_ns))


@identity.command()
@placed
@_as_json
@click.argument("gateway", type=_Gateway())
def show(file: Path | None, store_url: str | None, *, gateway: str, as_json: bool) -> None:
    """Show one device with its latest events."""
    with _desk(file, store_url) as desk:
        device = find_device(desk.tx, gateway)
        events = list_events(desk.tx, gateway=gateway, limit=20)
    if device is None and not events:
        raise IdentityError(f"there is no device {gateway}, and none has ever asked under this name")
    plain = None if device is None else device_plain(device)
    if as_json:
        put({"device": plain, "events": [event_plain(event) for event in events]})
        return
    for key, value in ({"gateway": gateway, "enrolled": "no"} if plain is None else plain).items():
        say(f"{key:18} {value if value is not None else '-'}")
    for event in events:
        say_line(event_line(event))


@identity.command()
@placed
@click.argument("gateway", type=_Gateway())
@click.option("--why", default="revoked by an operator", show_default=True, help="Is told to the device.")
@_as_json
def revoke(file: Path | None, store_url: str | None, *, gateway: str, why: str, as_json: bool) -> None:
    """Take a device's identity back: no new certificate or key, those it has are revoked, its connection is cut."""
    with _desk(file, store_url) as desk:
        certificates = revoke_device(desk.tx, gateway, why, desk.now_ns)
        tokens = drop_claims(desk.tx, gateway)
        desk.note(gateway, "revoked", why)
    if as_json:
        put({"gateway": gateway, "certificates": certificates, "claims": tokens})
    else:
        say(f"{gateway} is revoked, with {so_many(certificates, 'certificate')} and {so_many(tokens, 'unused claim')}")
        say("a running bridge tells the broker within a minute; without one the device stays connected until it starts")


@identity.command()
@placed
@click.option("--gateway", type=_Gateway(), help="Of this device only.")
@click.option("--limit", type=click.IntRange(1, MAX_NUMBER), default=50, show_default=True, help="The latest so many.")
@_as_json
def events(file: Path | None, store_url: str | None, *, gateway: str | None, limit: int, as_json: bool) -> None:
    """List what happened: enrolments, refusals, revocations; the latest first."""
    with _desk(file, store_url) as desk:
        found = list_events(desk.tx, gateway=gateway, limit=limit)
    for event in found:
        if as_json:
            put(event_plain(event))
        else:
            say_line(event_line(event))


# ---- claims ----------------------------------------------------------------------------------------


@identity.group()
def token() -> None:
    """Claims: who may enrol."""


@token.command("create")
@placed
@click.argument("gateway", type=_Gateway())
@click.option("--valid", type=_Period(), default="7d", show_default=True, help="So long it may be used, once.")
@click.option("--replace", is_flag=True, help="The name may belong to a device already, or to a revoked one.")
@click.option(
    "--ek-certificate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="No secret: the TPM with this endorsement certificate (PEM or DER) may enrol. Needs identity.ek_roots.",
)
@click.option("--claim-file", type=click.Path(dir_okay=False, path_type=Path), help="Write a claim file, mode 0600.")
@click.option("--qr", metavar="FILE|-", help="The claim as a QR code: FILE.svg, FILE.png, or `-` for this terminal.")
@click.option("--identity-url", help="How the device reaches this listener; default: the first of identity.names.")
@click.option("--broker", "brokers", multiple=True, help="Broker of the device, mqtts://…; may be given again.")
@click.option("--registry-url", help="Where the device gets releases, https://…; brings the repository's root along.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the device; may be given again.")
@click.option("--with", "template", type=click.Path(exists=True, path_type=Path), help="YAML: more keys of the claim.")
@click.option("--reset-code", is_flag=True, help="Also make a code with which a stick may reset the device.")
@_as_json
def token_create(
    file: Path | None,
    store_url: str | None,
    *,
    gateway: str,
    valid: int,
    replace: bool,
    ek_certificate: Path | None,
    claim_file: Path | None,
    qr: str | None,
    identity_url: str | None,
    brokers: tuple[str, ...],
    registry_url: str | None,
    labels: tuple[str, ...],
    template: Path | None,
    reset_code: bool,
    as_json: bool,
) -> None:
    """Let a device enrol as GATEWAY. Prints the code to give it: the secret, and whom it must trust."""
    config = Place(file, store_url).config()
    more = Carriage(claim_file, qr, identity_url, brokers, registry_url, labels, template, reset_code)
    more.check()
    secret = None if ek_certificate is not None else new_token()
    root = more.registry_root((file, store_url), config)
    with _desk(file, store_url) as desk:
        if secret is None:
            assert ek_certificate is not None
            if desk.identities.settings.ek_roots is None:
                raise IdentityError("an endorsement certificate vouches for nothing without identity.ek_roots")
            claim_id, kind = id_of_ek(_ek_digest(ek_certificate)), "ek"
        else:
            claim_id, kind = id_of_token(secret), "token"
        expires_ns = desk.now_ns + valid * 1_000_000_000
        fingerprint = desk.identities.ca.services_fingerprint
        code = None if secret is None else ClaimCode(token=secret, fingerprint=fingerprint).text()
        # Written before the claim counts: what cannot be carried must not leave a claim that nobody has.
        claimed = Claimed(gateway, code, fingerprint, rfc3339(expires_ns))
        ready = more.prepare(root, config, desk.identities.ca.services_pem, claimed)
        add_claim(desk.tx, Claim(claim_id, gateway, kind, replace, desk.now_ns, expires_ns, None))
        desk.note(gateway, "claim-created", f"{kind}, until {rfc3339(expires_ns)}{', replaces' if replace else ''}")
        ready.write()
    plain: dict[str, Any] = {
        "gateway": gateway,
        "kind": kind,
        "expires_at": rfc3339(expires_ns),
        "fingerprint": fingerprint,
        **ready.plain(),
    }
    if as_json:
        put(plain if code is None else {**plain, "code": code})
        return
    if code is not None and not ready.on_terminal:
        say(code)
        say(f"for {gateway}, once, until {rfc3339(expires_ns)}; it is shown here only", err=True)
    elif code is None:
        say(f"the TPM of {ek_certificate} may enrol as {gateway} until {rfc3339(expires_ns)}", err=True)
    ready.tell()


@token.command("list")
@placed
@_as_json
def token_list(file: Path | None, store_url: str | None, *, as_json: bool) -> None:
    """List claims, the latest first; their secrets are not kept."""
    with _desk(file, store_url) as desk:
        found = [claim_plain(claim, desk.now_ns) for claim in list_claims(desk.tx)]
    for plain in found:
        if as_json:
            put(plain)
        else:
            say(f"{plain['gateway']}: {plain['kind']}, {plain['state']}, expires {plain['expires_at']}")


@token.command("drop")
@placed
@click.argument("gateway", type=_Gateway())
def token_drop(file: Path | None, store_url: str | None, *, gateway: str) -> None:
    """Take the unused claims for GATEWAY back."""
    with _desk(file, store_url) as desk:
        count = drop_claims(desk.tx, gateway)
        desk.note(gateway, "claim-dropped", f"{so_many(count, 'claim')}")
    say(f"{so_many(count, 'claim')} dropped")


# ---- boot states -----------------------------------------------------------------------------------


@identity.group()
def states() -> None:
    """Approved boot states: values of the PCRs in which a device gets certificates and keys."""


@states.command("add")
@placed
@click.argument("name")
@click.argument("values", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--from-refusal", metavar="ID", help="The values of a quote that was refused; see `identity events`.")
def states_add(
    file: Path | None, store_url: str | None, *, name: str, values: Path | None, from_refusal: str | None
) -> None:
    """Approve a boot state. VALUES is JSON: {"pcrs": {"11": "<64 hexadecimal digits>"}}."""
    if (values is None) == (from_refusal is None):
        raise click.UsageError("give a file with VALUES, or --from-refusal ID")
    with _desk(file, store_url) as desk:
        if values is not None:
            pcrs, origin = read_pcrs(values.read_bytes()), str(values.name)
        else:
            assert from_refusal is not None
            pcrs, origin = _refused_pcrs(desk.tx, from_refusal), f"refusal {from_refusal}"
        unasked = pcrs.keys() - set(desk.identities.settings.pcrs)
        if unasked:
            numbers = ", ".join(map(str, sorted(unasked)))
            raise IdentityError(f"PCR {numbers}: not asked of devices, so no device would match; see identity.pcrs")
        approve(desk.tx, Approval(BootState(name, pcrs), desk.now_ns, origin))
        desk.note("", "state-approved", f"{name} from {origin}")
    say(f"{name} is approved: PCR {', '.join(map(str, sorted(pcrs)))}")


@states.command("list")
@placed
@_as_json
def states_list(file: Path | None, store_url: str | None, *, as_json: bool) -> None:
    """List the approved states."""
    with _desk(file, store_url) as desk:
        found = [state_plain(approval) for approval in list_approvals(desk.tx)]
    for plain in found:
        if as_json:
            put(plain)
            continue
        say(f"{plain['name']} ({plain['created_at']}, {plain['origin']})")
        for number, value in plain["pcrs"].items():
            say(f"  PCR {number:>2} {value}")


@states.command("remove")
@placed
@click.argument("name")
def states_remove(file: Path | None, store_url: str | None, *, name: str) -> None:
    """Approve a state no more: devices in it get no new certificate."""
    with _desk(file, store_url) as desk:
        disapprove(desk.tx, name)
        desk.note("", "state-removed", name)
    say(f"{name} is no longer approved")


# ---- content keys ----------------------------------------------------------------------------------


@identity.group()
def grants() -> None:
    """Content keys of model releases, and who gets them."""


@grants.command("list")
@placed
@_as_json
def grants_list(file: Path | None, store_url: str | None, *, as_json: bool) -> None:
    """List the releases that have a content key; the keys are not shown."""
    with _opened(file, store_url) as identities:
        for key in identities.keys.all():
            plain = key_plain(key)
            if as_json:
                put(plain)
            else:
                to = ", ".join(plain["gateways"]) or "every device"
                revoked = f", revoked {plain['revoked_at']}" if plain["revoked_at"] else ""
                say(f"{plain['release']} for {to}{revoked}, digest {plain['digest']}")


@grants.command("create")
@placed
@click.argument("release")
@click.option("--digest", required=True, help="SHA-256 of the model, 64 hexadecimal digits.")
@click.option("--gateway", "gateways", type=_Gateway(), multiple=True, help="Only for these; default: every device.")
@click.option("--key-out", type=click.Path(path_type=Path), help="Write the key (32 bytes, mode 0600) to encrypt with.")
def grants_create(
    file: Path | None,
    store_url: str | None,
    *,
    release: str,
    digest: str,
    gateways: tuple[str, ...],
    key_out: Path | None,
) -> None:
    """Make the content key of RELEASE. Devices get it, wrapped for each, with their next attestation."""
    with _opened(file, store_url) as identities:
        key = identities.keys.create(release, digest.lower(), gateways)
        _noted(identities, "key-created", release)
        _write_key(key, key_out)
    say(f"{release} has a content key", err=True)


@grants.command("key")
@placed
@click.argument("release")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="32 bytes, mode 0600; must not be there.")
def grants_key(file: Path | None, store_url: str | None, *, release: str, out: Path) -> None:
    """Write the content key of RELEASE into a file, to encrypt with."""
    with _opened(file, store_url) as identities:
        _write_key(identities.keys.find(release), out)
        _noted(identities, "key-exported", release)


@grants.command("revoke")
@placed
@click.argument("release")
def grants_revoke(file: Path | None, store_url: str | None, *, release: str) -> None:
    """Give the key of RELEASE to nobody any more. Who has it keeps it until the lease ends."""
    with _opened(file, store_url) as identities:
        identities.keys.revoke(release)
        _noted(identities, "key-revoked", release)
    say(f"the key of {release} is given to nobody any more")


def _write_key(key: ContentKey, out: Path | None) -> None:
    if out is not None and not create_file(out.absolute(), key.key):
        raise IdentityError(f"{out} is there already; keys are not written over other files")


def _noted(identities: Identities, kind: str, detail: str) -> None:
    with identities.database.transaction() as tx:
        _Desk(identities, tx, identities.clock()).note("", kind, detail)


def _refused_pcrs(tx: Transaction, refusal: str) -> dict[int, bytes]:
    event = find_event(tx, refusal)
    if event is None:
        raise IdentityError(f"there is no refusal {refusal}; `cloud-bridge identity events` lists them")
    happening = event.happening
    if happening.kind not in {"wrong-pcr", "no-approved-state"} or not happening.proven:
        raise IdentityError(
            f"{refusal} is about {happening.kind}; only a quote that was good but not approved has values"
        )
    return pcrs_of(happening.evidence)


def _ek_digest(file: Path) -> str:
    data = file.read_bytes()
    try:
        load = x509.load_pem_x509_certificate if b"-----BEGIN" in data else x509.load_der_x509_certificate
        key = load(data).public_key()
    except ValueError as error:
        raise IdentityError(f"{file} is not a certificate: {error}") from error
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise IdentityError(f"{file} is not of an endorsement key")
    return key_digest(spki_of(key))
