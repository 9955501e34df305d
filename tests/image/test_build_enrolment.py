"""The files that switch Secure Boot on are what firmware takes: their layout, and who signed what (UEFI 2.10, 8.2.2).

Needs root and the tools tree of a build.
"""

import os
import struct
import subprocess
import uuid
from pathlib import Path

import pytest

from image.builder import enrolment
from image.builder.chroot import Tree
from image.builder.keys import Keys, vendor_keys
from image.builder.progress import Progress

REPO = Path(__file__).parents[2]
CACHE = Path(os.environ.get("SLUICE_IMAGE_CACHE") or REPO / "var/image/cache")
EPOCH = 1_700_000_000  # 2023-11-14 22:13:20

pytestmark = [
    pytest.mark.image,
    pytest.mark.skipif(os.geteuid() != 0, reason="the tools tree is a chroot, which needs root"),
]

_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")  # EFI_GLOBAL_VARIABLE: PK and KEK
_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")  # EFI_IMAGE_SECURITY_DATABASE_GUID: db
_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")  # EFI_CERT_X509_GUID
_PKCS7 = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")  # EFI_CERT_TYPE_PKCS7_GUID
_ATTRIBUTES = 0x27  # non-volatile, boot and runtime, time-based authenticated write
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    tree = next(CACHE.glob("tools-*[0-9a-f]"), None)
    if tree is None:
        pytest.skip(f"no tools tree in {CACHE}: the first build makes it")
    return Tree(tree, Progress(tmp_path_factory.mktemp("log") / "log"))


@pytest.fixture(scope="module")
def keys(tools: Tree, tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return vendor_keys(tmp_path_factory.mktemp("keys") / "keys", tools, may_make=True)


def der(certificate: Path) -> bytes:
    argv: list[str | Path] = ["openssl", "x509", "-in", certificate, "-outform", "DER"]
    return subprocess.run(argv, capture_output=True, check=True).stdout


def signature_list(certificate: bytes) -> bytes:
    """EFI_SIGNATURE_LIST with one certificate."""
    size = 16 + len(certificate)
    return _X509.bytes_le + struct.pack("<III", 28 + size, 0, size) + enrolment.OWNER.bytes_le + certificate


def long_form(tag: int, content: bytes) -> bytes:
    return bytes((tag, 0x82)) + struct.pack(">H", len(content)) + content


def verifies(update: bytes, name: str, owner: uuid.UUID, signer: Path, scratch: Path) -> bool:
    """Check an EFI_VARIABLE_AUTHENTICATION_2 as firmware does."""
    time = update[:16]
    length, revision, kind = struct.unpack_from("<IHH", update, 16)
    assert (revision, kind, update[24:40]) == (0x0200, 0x0EF1, _PKCS7.bytes_le)
    signed, content = update[40 : 16 + length], update[16 + length :]
    assert struct.unpack_from("<HBBBBB", time) == (2023, 11, 14, 22, 13, 20)
    if _SIGNED_DATA not in signed[:20]:  # firmware takes it without its envelope as well, openssl does not
        signed = long_form(0x30, _SIGNED_DATA + long_form(0xA0, signed))
    (scratch / "signed").write_bytes(signed)
    covered = name.encode("utf-16-le") + owner.bytes_le + struct.pack("<I", _ATTRIBUTES) + time + content
    (scratch / "covered").write_bytes(covered)
    argv: list[str | Path] = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", scratch / "signed"]
    argv += ["-content", scratch / "covered", "-CAfile", signer, "-purpose", "any", "-out", os.devnull]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_each_key_is_signed_by_the_one_above_it_and_by_no_other(keys: Keys, tools: Tree, tmp_path: Path) -> None:
    files = enrolment.write(tmp_path / "out", keys, tools, EPOCH)
    assert set(files) == {"PK.auth", "KEK.auth", "db.auth", "db.esl", "db.cer"}
    chain = {"PK": ("PK", _GLOBAL), "KEK": ("PK", _GLOBAL), "db": ("KEK", _DATABASE)}
    for name, (signer, owner) in chain.items():
        update = files[f"{name}.auth"].read_bytes()
        assert update.endswith(signature_list(der(keys.folder / f"{name}.crt")))
        assert verifies(update, name, owner, keys.folder / f"{signer}.crt", tmp_path)
        assert not verifies(update, name, owner, keys.folder / "db.crt", tmp_path)
        changed = update[:-1] + bytes([update[-1] ^ 1])
        assert not verifies(changed, name, owner, keys.folder / f"{signer}.crt", tmp_path)


def test_the_plain_forms_hold_the_certificate_that_kernels_are_signed_with(
    keys: Keys, tools: Tree, tmp_path: Path
) -> None:
    files = enrolment.write(tmp_path / "out", keys, tools, EPOCH)
    certificate = der(keys.folder / "db.crt")
    assert files["db.cer"].read_bytes() == certificate
    assert files["db.esl"].read_bytes() == signature_list(certificate)


def test_a_vendor_whose_firmware_has_other_owners_gets_no_signed_updates(
    keys: Keys, tools: Tree, tmp_path: Path
) -> None:
    own = tmp_path / "keys"
    own.mkdir()
    for name in ("db.key", "db.crt"):
        (own / name).write_bytes((keys.folder / name).read_bytes())
    assert set(enrolment.write(tmp_path / "out", Keys(own, made=False), tools, EPOCH)) == {"db.esl", "db.cer"}
