"""What a RAUC bundle says of itself, read without RAUC.

A bundle of format `verity` is a squashfs, its hash tree, a CMS signature (RFC 5652 §5, DER) that contains the manifest,
and the length of that signature in 8 bytes, big endian (RAUC reference, "Bundle Formats"). The manifest has the root of
the hash tree, so the signature part names every byte before it. Whether the signature is good, each device decides by
its own keyring; `verify` does the same here where the keyring is at hand.
"""

import configparser
import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloud_bridge.registry.errors import RegistryError

_SIZE_BYTES: Final = 8
_MAX_SIGNATURE_BYTES: Final = 1 << 20
_SIGNED_DATA: Final = bytes.fromhex("2a864886f70d010702")  # 1.2.840.113549.1.7.2
_DATA: Final = bytes.fromhex("2a864886f70d010701")
_COMPATIBLE: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_VERSION: Final = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}(-[0-9A-Za-z.-]{1,60})?")
_PCR: Final = re.compile(r"[0-9a-fA-F]{64}")
_SEQUENCE: Final = 0x30
_OID: Final = 0x06
_OCTETS: Final = 0x04
_CONTEXT_0: Final = 0xA0


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle in a file. The last `tail_bytes` are signature and its size; `sha256` is of the whole file."""

    file: Path
    size_bytes: int
    sha256: str
    compatible: str
    version: str
    floor: str
    counter: int | None
    adaptive: bool
    pcr11: dict[str, str]
    tail_bytes: int
    tail_sha256: str
    manifest_sha256: str

    @property
    def custom(self) -> dict[str, Any]:
        """What is signed about it in the repository."""
        return {
            "kind": "os",
            "compatible": self.compatible,
            "version": self.version,
            "floor": self.floor,
            "counter": self.counter,
            "adaptive": self.adaptive,
            "pcr11": self.pcr11,
            "tail_bytes": self.tail_bytes,
            "tail_sha256": self.tail_sha256,
            "manifest_sha256": self.manifest_sha256,
        }


def read_bundle(file: Path) -> Bundle:
    """Read a bundle.

    Raises:
        RegistryError: it cannot be read, or is no bundle of format verity.
    """
    try:
        with file.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            size = source.seek(0, 2)
            signature = _signature(file, source, size)
    except OSError as error:
        raise RegistryError(f"{file}: {error.strerror or error}; name an update bundle (*.raucb)") from error
    tail = signature + len(signature).to_bytes(_SIZE_BYTES, "big")
    manifest = _content(file, signature)
    said = _manifest(file, manifest)
    meta = dict(said["meta.sluice"]) if said.has_section("meta.sluice") else {}
    compatible = said.get("update", "compatible", fallback="")
    version: str = meta.get("version") or str(said.get("update", "version", fallback=""))
    _require(file, "compatible", compatible, _COMPATIBLE, "lower-case letters, digits and -")
    _require(file, "version", version, _VERSION, "a semantic version, as in 1.4.0")
    floor = meta.get("floor", "")
    if floor:
        _require(file, "floor", floor, _VERSION, "a semantic version, as in 1.2.0")
    if said.get("bundle", "format", fallback="plain") != "verity":
        raise RegistryError(f"{file}: its format is not verity: devices could not check it block by block")
    counter = meta.get("counter", "")
    return Bundle(
        file=file,
        size_bytes=size,
        sha256=digest,
        compatible=compatible,
        version=version,
        floor=floor,
        counter=int(counter) if counter.isdigit() else None,
        adaptive=any(said.get(name, "adaptive", fallback="") for name in said.sections() if name.startswith("image.")),
        pcr11={
            key.removeprefix("pcr11-"): value.lower()
            for key, value in meta.items()
            if key.startswith("pcr11-") and _PCR.fullmatch(value)
        },
        tail_bytes=len(tail),
        tail_sha256=hashlib.sha256(tail).hexdigest(),
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
    )


def verify(bundle: Bundle, keyring: Path) -> None:
    """Make sure that a bundle is signed by whom a keyring names, as devices will.

    Raises:
        RegistryError: it is not, or openssl is not there.
    """
    with bundle.file.open("rb") as source, tempfile.TemporaryDirectory() as work:
        source.seek(bundle.size_bytes - bundle.tail_bytes)
        signature = Path(work) / "signature.der"
        signature.write_bytes(source.read(bundle.tail_bytes - _SIZE_BYTES))
        command = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", str(signature)]
        command += ["-CAfile", str(keyring), "-purpose", "any", "-out", "/dev/null"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RegistryError(f"openssl cannot verify {bundle.file}: {error}") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise RegistryError(f"{bundle.file} is not signed by {keyring}: {words[-1] if words else 'openssl refuses it'}")


def _signature(file: Path, source: Any, size: int) -> bytes:
    source.seek(max(0, size - _SIZE_BYTES))
    length = int.from_bytes(source.read(_SIZE_BYTES), "big")
    if not 0 < length <= min(_MAX_SIGNATURE_BYTES, size - _SIZE_BYTES):
        raise RegistryError(f"{file} is no update bundle: it does not end with a signature")
    source.seek(size - _SIZE_BYTES - length)
    return bytes(source.read(length))


def _content(file: Path, signature: bytes) -> bytes:
    """Return the manifest inside a CMS SignedData.

    ContentInfo ::= SEQUENCE { OID, [0] SignedData }; SignedData ::= SEQUENCE { version, digestAlgorithms,
    EncapsulatedContentInfo, … }; EncapsulatedContentInfo ::= SEQUENCE { OID, [0] OCTET STRING }.
    """
    try:
        info = _inside(signature, _SEQUENCE)
        kind, rest = _next(info)
        data = _inside(_inside(rest, _CONTEXT_0), _SEQUENCE)
        _, data = _next(data)  # version
        _, data = _next(data)  # digest algorithms
        encapsulated = _inside(data, _SEQUENCE)
        inner, rest = _next(encapsulated)
        content = _inside(_inside(rest, _CONTEXT_0), _OCTETS)
    except (IndexError, ValueError) as error:
        raise RegistryError(f"{file}: its signature does not contain the manifest; is its format verity?") from error
    if (kind, inner) != ((_OID, _SIGNED_DATA), (_OID, _DATA)):
        raise RegistryError(f"{file}: its signature is none (RFC 5652 §5), or the bundle is encrypted")
    return content


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Take one element of DER: its tag, its content, and what follows it (X.690 §8.1)."""
    tag, length, at = data[0], data[1], 2
    if length & 0x80:
        count = length & 0x7F
        if not 0 < count <= 4:
            raise ValueError("a length that DER does not have")
        length, at = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if at + length > len(data):
        raise ValueError("longer than what is there")
    return tag, data[at : at + length], data[at + length :]


def _inside(data: bytes, tag: int) -> bytes:
    found, content, _ = _element(data)
    if found != tag:
        raise ValueError(f"tag {found:#x} instead of {tag:#x}")
    return content


def _next(data: bytes) -> tuple[tuple[int, bytes], bytes]:
    tag, content, rest = _element(data)
    return (tag, content), rest


def _manifest(file: Path, content: bytes) -> configparser.ConfigParser:
    manifest = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        manifest.read_string(content.decode("utf-8"))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise RegistryError(f"{file}: its manifest cannot be read: {error}") from error
    if not manifest.has_section("update"):
        raise RegistryError(f"{file}: its manifest has no [update]")
    return manifest


def _require(file: Path, what: str, value: str, pattern: re.Pattern[str], words: str) -> None:
    if pattern.fullmatch(value) is None:
        raise RegistryError(f"{file}: its {what} is {value[:80]!r}; it must be {words}")
