"""The keys of a vendor, made on the first build when none are named. Private halves never enter an image.

* `PK`, `KEK`: own the firmware's settings and its list of keys for UEFI Secure Boot (RSA-2048). A vendor whose firmware
  has others already needs neither.
* `db`: signs kernels and the boot loader for UEFI Secure Boot (RSA-2048).
* `pcr`: signs the values of PCR 11 that the disk may be opened at (RSA-2048, systemd-measure(1)).
* `policy`: approves boot states to the vault (ECDSA P-256, gateway/vault/policy.py).
* `ca`, `bundle`: RAUC's keyring and the key of bundles (ECDSA P-256).
"""

import tempfile
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

# Tells what does not fit, a line each. Devices would trust the public halves, and believe nothing that is signed here.
_CHECK: Final = """
cd /run/b/keys
public() { openssl pkey -in "$1" -passin pass: -pubout 2>/dev/null; }
check() {  # private key, public half, kind
    case $2 in
    *.crt) half=$(openssl x509 -in "$2" -noout -pubkey 2>/dev/null) ;;
    *) half=$(openssl pkey -pubin -in "$2" -pubout 2>/dev/null) ;;
    esac || { echo "$2: cannot be read; PEM is wanted"; half=; }
    own=$(public "$1") || { echo "$1: no private key in PEM without a password"; return; }
    [ -z "$half" ] || [ "$own" = "$half" ] || echo "$2 does not belong to $1"
    told=$(printf '%s\\n' "$own" | openssl pkey -pubin -noout -text)
    case $3:$told in
    rsa:*Modulus:*|p256:*prime256v1*|any:*) ;;
    rsa:*) echo "$1: an RSA key is wanted" ;;
    *) echo "$1: an ECDSA key on P-256 is wanted" ;;
    esac
}
check db.key db.crt rsa
check pcr.key pcr.pub rsa
check policy.key policy.pub p256
check bundle.key bundle.crt any
for name in PK KEK; do
    if [ -e $name.key ] && [ -e $name.crt ]; then check $name.key $name.crt rsa; fi
done
if ! told=$(openssl verify -purpose smimesign -CAfile ca.crt bundle.crt 2>&1); then
    told=$(printf '%s\\n' "$told" | grep -m1 '^error')
    echo "bundle.crt does not hold against ca.crt: ${told:-cannot be read}"
fi
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
        MissingError: some are there and some are not, none are and none may be made, or they do not fit together.
    """
    check_folder(folder, may_make=may_make)
    made = _missing(folder) != [] and _make(folder, tools)
    if may_make and not any((folder / name).exists() for name in _FIRMWARE):
        tools.run(["sh", "-ec", _FIRMWARE_SCRIPT], {folder: "/run/b/keys"})
    wrong = tools.capture(["sh", "-uc", _CHECK], {folder: "/run/b/keys"}).splitlines()
    if wrong:
        listed = "\n".join(f"  {line}" for line in wrong)
        raise MissingError(f"the keys in {folder} do not fit together:\n{listed}\ndocs/image.md says what each is")
    return Keys(folder, made=made)


def check_folder(folder: Path, *, may_make: bool) -> None:
    """Look whether all keys are there, or none and they may be made: before anything is fetched.

    Raises:
        MissingError: neither.
    """
    missing = _missing(folder)
    if missing and not may_make and not folder.is_dir():
        raise MissingError(f"{folder}: no such folder of keys; without KEYS= (--keys) they are made in var/image/keys")
    if missing and (len(missing) < len(_NEEDED) or not may_make or _strangers(folder)):
        raise MissingError(f"{folder} lacks {', '.join(missing)}; docs/image.md says what each is")


def _missing(folder: Path) -> list[str]:
    return [name for name in _NEEDED if not (folder / name).is_file()]


def _strangers(folder: Path) -> bool:
    """Whether something else is where new keys would be made."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _make(folder: Path, tools: Tree) -> bool:
    """Make them; false if another build was quicker."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
        partial = Path(scratch) / "keys"
        partial.mkdir(mode=0o700)
        tools.run(["sh", "-ec", _SCRIPT], {partial: "/run/b/keys"})
        try:
            partial.rename(folder)
        except OSError:
            if _missing(folder):
                raise
            return False
    return True
