"""What a person needs to switch Secure Boot on with the vendor's own keys: the keys in the forms that firmware takes.

`*.auth` are signed updates of the firmware's variables (UEFI 2.10, 8.2.2), `db.esl` the same unsigned, `db.cer` the
bare certificate for setup menus that take one.
"""

import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from image.builder.chroot import Tree
from image.builder.keys import Keys

OWNER: Final = uuid.UUID("6d1b7c2a-0c53-5b0e-8a7e-53c6a2f0d1e4")
"""Who put a key in, as firmware shows it; the same on all devices."""

_PLAIN: Final = """
openssl x509 -in /run/b/keys/db.crt -outform DER -out /run/b/out/db.cer
cert-to-efi-sig-list -g {owner} /run/b/keys/db.crt /run/b/out/db.esl
"""
# Each is signed by the one above it; the uppermost by itself.
_SIGNED: Final = """
for name in PK KEK; do cert-to-efi-sig-list -g {owner} /run/b/keys/$name.crt /run/b/out/$name.esl; done
sign() {{ sign-efi-sig-list -g {owner} -t '{time}' -k /run/b/keys/$2.key -c /run/b/keys/$2.crt $1 /run/b/out/$1.esl \\
    /run/b/out/$1.auth; }}
sign PK PK
sign KEK PK
sign db KEK
rm /run/b/out/PK.esl /run/b/out/KEK.esl
"""


def write(folder: Path, keys: Keys, tools: Tree, epoch: int) -> dict[str, Path]:
    """Write the files and return them by name. Without the vendor's PK and KEK there are no signed ones.

    Raises:
        BuildError: a tool failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    script = _PLAIN + (_SIGNED if keys.owns_firmware else "")
    time = f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M:%S}"
    tools.run(["sh", "-euc", script.format(owner=OWNER, time=time)], {keys.folder: "/run/b/keys", folder: "/run/b/out"})
    return {file.name: file for file in sorted(folder.iterdir())}
