"""Makes update bundles in RAUC's verity layout: payload, CMS signature with the manifest in it, its size in 8 bytes."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Signer:
    """Who signs bundles."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str = "vendor") -> "Signer":
        """Make one, with its own certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    def keyring(self, file: Path) -> Path:
        """Write what a device believes."""
        file.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        return file


def bundle(
    file: Path,
    signer: Signer,
    *,
    compatible: str = "sluice-uefi-amd64",
    version: str,
    floor: str = "",
    adaptive: bool = False,
    meta: dict[str, str] | None = None,
    payload: bytes | None = None,
    damaged: bool = False,
) -> Path:
    """Write a bundle. damaged: one bit of the payload is not what is signed."""
    content = payload if payload is not None else hashlib.sha256(f"{compatible} {version}".encode()).digest() * 4096
    lines = ["[update]", f"compatible={compatible}", f"version={version}", "", "[bundle]", "format=verity"]
    lines += [f"verity-hash={hashlib.sha256(content).hexdigest()}", f"verity-salt={'0' * 64}", "verity-size=4096", ""]
    lines += ["[image.rootfs]", "filename=rootfs.img", f"sha256={'0' * 64}", f"size={len(content)}"]
    lines += ["adaptive=block-hash-index"] if adaptive else []
    said = {"version": version, **({"floor": floor} if floor else {}), **(meta or {})}
    lines += ["", "[meta.sluice]", *(f"{key}={value}" for key, value in said.items()), ""]
    signature = (
        pkcs7.PKCS7SignatureBuilder()
        .set_data("\n".join(lines).encode())
        .add_signer(signer.certificate, signer.key, hashes.SHA256())
        .sign(Encoding.DER, [pkcs7.PKCS7Options.Binary])
    )
    if damaged:
        content = bytes([content[0] ^ 1]) + content[1:]
    file.write_bytes(content + signature + len(signature).to_bytes(8, "big"))
    return file
