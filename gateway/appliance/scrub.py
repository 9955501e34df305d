"""Takes secrets out of what leaves the device in a support bundle. Pure, but for the reading of known secrets.

Two nets: the values of all secrets that this device knows are replaced wherever they stand, and so is whatever has
the form of a secret, whoever wrote it there.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, quote_plus

import msgspec

from gateway.config import Config
from gateway.configload.words import is_secret
from gateway.shown import shown

REMOVED: Final = "<removed>"
_WORDS: Final = "password|passwd|passphrase|secret|token|api_?key|private_?key|credential"
_SHORTEST: Final = 4
_LARGEST: Final = 16 * 1024
_FORMS: Final = (
    (re.compile(r"sluice1\.[^\s.\"']+\.[0-9a-fA-F]{64}"), REMOVED),
    (re.compile(r"SLUICE1:[0-9A-Z $%*+./:-]{40,}"), REMOVED),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), REMOVED),
    (re.compile(r"(?i)\b(authorization:\s*)(basic|bearer)\s+[^\s\"']+"), r"\1" + REMOVED),
    (re.compile(rf"(?i)((?:{_WORDS})s?[\"']?[ \t]*[=:][ \t]*)\"[^\"\n]*\""), rf'\1"{REMOVED}"'),
    (re.compile(rf"(?i)((?:{_WORDS})s?[\"']?[ \t]*[=:][ \t]*)'[^'\n]*'"), rf"\1'{REMOVED}'"),
    # A number in JSON, which has to stay JSON.
    (re.compile(rf"(?i)((?:{_WORDS})s?\"[ \t]*:[ \t]*)[-+.\w]+(?=[ \t]*[,}}\n])"), rf'\1"{REMOVED}"'),
    (re.compile(rf"(?i)((?:{_WORDS})s?[\"']?[ \t]*[=:][ \t]*)[^\s,;\[{{}}\"']+"), rf"\1{REMOVED}"),
)


class Scrubber:
    """Removes secrets from texts."""

    def __init__(self, known: Iterable[str]) -> None:
        """Take the secrets that are known; very short ones are left to their form, for they stand in every word."""
        lines = {line.strip() for secret in known for line in (secret, *secret.splitlines())}
        forms = {form for each in lines if len(each) >= _SHORTEST for form in _written(each)}
        values = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, values))) if values else None
        self.removed = 0

    def clean(self, text: str) -> str:
        """Return a text without secrets."""
        before = text.count(REMOVED)
        text = shown(text, hidden=REMOVED)
        self.removed += text.count(REMOVED) - before
        if self._known is not None:
            text, count = self._known.subn(REMOVED, text)
            self.removed += count
        for form, replacement in _FORMS:
            text, count = form.subn(replacement, text)
            self.removed += count
        return text


def _written(secret: str) -> Iterator[str]:
    """Yield the ways in which a secret may stand in a text: as it is, in JSON by any encoder, quoted, in an address."""
    yield secret
    yield secret.replace("'", "''")  # YAML
    yield repr(secret)[1:-1]
    for ascii_only in (True, False):
        escaped = json.dumps(secret, ensure_ascii=ascii_only)[1:-1]
        yield escaped
        yield escaped.replace("/", r"\/")
        yield json.dumps(escaped, ensure_ascii=ascii_only)[1:-1]  # JSON in a line of a log that is JSON
    for safe in ("/", ""):
        quoted = quote(secret, safe=safe)
        yield quoted
        yield re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), quoted)
    yield quote_plus(secret)


def without_secrets(value: Any, key: str = "") -> Any:
    """Return a tree of a configuration in which nothing that is named like a secret has its value.

    Paths of files that hold secrets stay: they tell much and open nothing.
    """
    match value:
        case dict():
            return {name: without_secrets(below, str(name)) for name, below in value.items()}
        case list() | tuple():
            return [without_secrets(each, key) for each in value]
        case _ if value not in (None, "") and (is_secret(key) or is_secret(key.removesuffix("s"))):
            return REMOVED
        case _:
            return value


def secrets_of(config: Config | None, settings: Path, state: Path) -> Iterator[str]:
    """Read every secret that this device keeps, as far as whoever runs this may read it."""
    files = {*(settings / "secrets").glob("*"), state / "identity/claim"}
    if config is not None:
        files |= set(_secret_files(msgspec.to_builtins(config, enc_hook=str)))
    for file in sorted(files):
        try:
            if file.is_file() and file.stat().st_size <= _LARGEST:
                yield file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue


def _secret_files(value: Any, key: str = "") -> Iterator[Path]:
    match value:
        case dict():
            for name, below in value.items():
                yield from _secret_files(below, str(name))
        case list():
            for each in value:
                yield from _secret_files(each, key)
        case str() if key.endswith("_file") and (is_secret(key.removesuffix("_file")) or key in _KEY_FILES):
            yield Path(value)
        case _:
            return


_KEY_FILES: Final = frozenset({"key_file", "claim_file", "query_file"})
"""`policy_key_file` is public."""
