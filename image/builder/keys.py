"""The keys of a vendor, made on the first build when none are named. Private halves never enter an image.

* `PK`, `KEK`: own the firmware's settings and its list of keys for UEFI Secure Boot (RSA-2048). A vendor whose firmware
  has others already needs neither.
* `db`: signs kernels and the boot loader for UEFI Secure Boot (RSA-2048).
* `pcr`: signs the values of PCR 11 that the disk may be opened at (RSA-2048, systemd-measure(1)).
* `policy`: approves boot states to the vault (ECDSA P-256, gateway/vault/policy.py).
* `ca`, `bundle`: RAUC's keyring and the key of bundles (ECDSA P-256).
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from image.builder.chroot import Tree
from image.builder.errors import MissingError

_YEARS_20: Final = "7300"
_FIRMWARE_SCRIPT: Final = f"""
umask 077
cd /run/b/keys
for name in PK KEK; do
    openssl req -x509 -newkey rsa:2048 -sha256 -nodes -days {_YEARS_20} -subj "/CN=Sluice $name/" \\
        -keyout $name.key -out $name.crt
done
chmod 644 PK.crt KEK.crt
"""
_SCRIPT: Final = f"""
{_FIRMWARE_SCRIPT}
openssl req -x509 -newkey rsa:2048 -sha256 -nodes -days {_YEARS_20} -subj '/CN=Sluice Secure Boot/' \\
    -keyout db.key -out db.crt
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out pcr.key
openssl pkey -in pcr.key -pubout -out pcr.pub
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out policy.key
openssl pkey -in policy.key -pubout -out policy.pub
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -sha256 -nodes -days {_YEARS_20} \\
    -subj '/CN=Sluice bundle authority/' -addext basicConstraints=critical,CA:TRUE \\
    -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.crt
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=Sluice bundles/' \\
    -keyout bundle.key -out bundle.csr
printf '%s\\n' basicConstraints=critical,CA:FALSE keyUsage=critical,digitalSignature \\
    extendedKeyUsage=emailProtection >bundle.ext
openssl x509 -req -in bundle.csr -CA ca.crt -CAkey ca.key -set_serial 1 -days {_YEARS_20} -sha256 \\
    -extfile bundle.ext -out bundle.crt
rm bundle.csr bundle.ext
chmod 644 *.crt *.pub
"""

_NEEDED: Final = (
    "db.key",
    "db.crt",
    "pcr.key",
    "pcr.pub",
    "policy.key",
    "policy.pub",
    "ca.crt",
    "bundle.key",
    "bundle.crt",
)
_FIRMWARE: Final = ("PK.key", "PK.crt", "KEK.key", "KEK.crt")


@dataclass(frozen=True, slots=True)
class Keys:
    """A folder of keys."""

    folder: Path
    made: bool  # just now

    @property
    def owns_firmware(self) -> bool:
        """Whether Secure Boot can be set up with these alone."""
        return all((self.folder / name).is_file() for name in _FIRMWARE)

    def public(self, name: str) -> bytes:
        """Read a public half or a certificate."""
        return (self.folder / name).read_bytes()


def vendor_keys(folder: Path, tools: Tree, *, may_make: bool) -> Keys:
    """Return the keys of a folder, made when there are none and `may_make`.

    Raises:
        MissingError: some are there and some are not, or none are and none may be made.
    """
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if not missing:
        found = Keys(folder, made=False)
        if may_make and not any((folder / name).exists() for name in _FIRMWARE):
            tools.run(["sh", "-ec", _FIRMWARE_SCRIPT], {folder: "/run/b/keys"})
        return found
    if len(missing) < len(_NEEDED) or not may_make:
        raise MissingError(f"{folder} lacks {', '.join(missing)}; docs/image.md says what each is")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, mode=0o700)
    tools.run(["sh", "-ec", _SCRIPT], {partial: "/run/b/keys"})
    if folder.is_dir():
        folder.rmdir()
    partial.rename(folder)
    return Keys(folder, made=True)
