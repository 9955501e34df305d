"""The seal of an exported file: a first line that announces an end mark, and the end mark itself.

`gateway outbox export` writes both (see there), so that a copy that was cut short is noticed, also when the cut is
between two lines. Files without the first line are taken as they are. Files may follow each other in one stream.
"""

import hashlib
from typing import Annotated, Final

import msgspec

_PREFIX: Final = b'{"sluice":'
_COPY_AGAIN: Final = "copy the file from the gateway again and import it once more; the whole lines in it were imported"


class _Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Either of the two lines; unknown fields are left alone."""

    sluice: str
    version: int = 1
    records: Annotated[int, msgspec.Meta(ge=0)] = 0
    sha256: str = ""


_decoder: Final = msgspec.json.Decoder(_Mark)


class Seal:
    """Looks at the lines of a stream as they pass."""

    def __init__(self) -> None:
        self._line = 0
        self._digest = hashlib.sha256()
        self._records = 0
        self._began: int | None = None  # the first line of the part that awaits its end mark
        self._problems: list[str] = []

    def checked(self, lines: list[bytes]) -> list[bytes]:
        """Return the lines with those of the seal blank, so that their numbers stay right."""
        return [self._checked(line) for line in lines]

    def finish(self) -> list[str]:
        """Return what is wrong with the stream as a whole, once it has ended."""
        if self._began is not None:
            self._problems.append(
                f"line {self._line}: the file ends before its end mark: it was cut short; {_COPY_AGAIN}"
            )
            self._began = None
        return self._problems

    def _checked(self, line: bytes) -> bytes:
        self._line += 1
        mark = _mark_of(line)
        if mark is None:
            self._digest.update(line)
            self._records += bool(line.strip())
            return line
        if mark.sluice == "export":
            self.finish()
            self._began = self._line
            self._digest = hashlib.sha256(line)
            self._records = 0
        elif self._began is not None:
            self._compare(mark)
            self._began = None
        return b"\n"

    def _compare(self, mark: _Mark) -> None:
        if mark.records != self._records:
            self._problems.append(
                f"line {self._line}: the file was written with {mark.records} records and has {self._records}; "
                f"{_COPY_AGAIN}"
            )
        elif mark.sha256 != self._digest.hexdigest():
            self._problems.append(
                f"line {self._line}: the checksum of the file is wrong: it was changed; {_COPY_AGAIN}"
            )


def _mark_of(line: bytes) -> _Mark | None:
    if not line.startswith(_PREFIX):
        return None
    try:
        mark = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return mark if mark.sluice in ("export", "end") else None
