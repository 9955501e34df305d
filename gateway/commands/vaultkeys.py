"""Content keys in files, as commands take them."""

from pathlib import Path
from typing import Final

from gateway.vault.aead import KEY_BYTES
from gateway.vault.errors import VaultError

_HEX_DIGITS: Final = frozenset(b"0123456789abcdefABCDEF")


def read_content_key(file: Path) -> bytes:
    """Read a content key: 64 hex digits, or the 32 bytes that `cloud-bridge identity grants` writes.

    Raises:
        VaultError: the file holds none.
    """
    try:
        found = file.read_bytes()
        is_text = len(found) != KEY_BYTES or not set(found) - _HEX_DIGITS  # half of a key in hex is no key
        key = bytes.fromhex(found.decode("ascii").strip()) if is_text else found
    except (OSError, ValueError) as error:
        raise VaultError(f"{file} holds no content key (64 hex digits, or 32 bytes): {error}") from error
    if len(key) != KEY_BYTES:
        raise VaultError(f"{file} holds {len(key)} bytes, a content key has {KEY_BYTES}")
    return key
