"""The seal of an exported file: a first line that announces an end mark, and the end mark itself.

`gateway outbox export` (see there) and `cloud-bridge export` write both, so that a copy that was cut short is noticed,
also when the cut is between two lines. Lines outside of a seal are taken as they are, and counted. Files may follow
each other in one stream.
"""

import hashlib
from typing import IO, Annotated, Final

import msgspec

_PREFIX: Final = b'{"sluice":'
_VERSION: Final = 1
_COPY_AGAIN: Final = "export or copy the file again"


class _Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Either of the two lines; unknown fields are left alone."""

    sluice: str
    version: int = 1
    records: Annotated[int, msgspec.Meta(ge=0)] = 0
    sha256: str = ""


_decoder: Final = msgspec.json.Decoder(_Mark)


class SealedFile:
    """Writes lines between a first line and an end mark. Without `close` the file is not whole, and says so."""

    def __init__(self, out: IO[bytes], at: str) -> None:
        """`at` is when the export began (RFC 3339)."""
        self._out = out
        self._digest = hashlib.sha256()
        self.records = 0
        self._put({"sluice": "export", "version": _VERSION, "at": at})

    def write(self, line: bytes) -> None:
        """Add a record, without the line end."""
        self._digest.update(line + b"\n")
        self._out.write(line + b"\n")
        self.records += 1

    def close(self) -> None:
        """Add the end mark: everything was written."""
        self._put({"sluice": "end", "records": self.records, "sha256": self._digest.hexdigest()})

    def _put(self, mark: dict[str, str | int]) -> None:
        line = msgspec.json.encode(mark) + b"\n"
        self._digest.update(line)
        self._out.write(line)


class Seal:
    """Looks at the lines of a stream as they pass."""

    def __init__(self) -> None:
        self._line = 0
        self._digest = hashlib.sha256()
        self._records = 0
        self._began: int | None = None  # the first line of the part that awaits its end mark
        self._problems: list[str] = []
        self.unsealed = 0
        """Records outside of any seal: whether others have followed them cannot be told."""

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
            self.unsealed += self._began is None and bool(line.strip())
            return line
        if mark.sluice == "export":
            self.finish()
            self._began = self._line
            self._digest = hashlib.sha256(line)
            self._records = 0
        elif self._began is not None:
            self._compare(mark)
            self._began = None
        else:
            self._problems.append(f"line {self._line}: an end mark without a beginning: lines are gone; {_COPY_AGAIN}")
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
