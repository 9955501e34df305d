"""Content keys in files, as commands take them."""

from pathlib import Path

from gateway.vault.aead import KEY_BYTES
from gateway.vault.errors import VaultError


def read_content_key(file: Path) -> bytes:
    """Read a content key, 64 hex digits.

    Raises:
        VaultError: the file holds none.
    """
    try:
        key = bytes.fromhex(file.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise VaultError(f"{file} holds no content key (64 hex digits): {error}") from error
    if len(key) != KEY_BYTES:
        raise VaultError(f"{file} holds {len(key)} bytes, a content key has {KEY_BYTES}")
    return key
