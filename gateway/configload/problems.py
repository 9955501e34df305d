"""A mistake in the configuration file, and where it is."""

import difflib
from collections.abc import Iterable
from typing import Literal

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """One mistake: its place (lines and columns count from 1), the dotted path of the value, and what to do."""

    line: int
    column: int
    path: str
    message: str
    remedy: str = ""
    severity: Literal["error", "warning"] = "error"

    def told(self, file: str) -> str:
        """Put the problem on one line, as compilers do: `file:line:column: error: path: message; remedy`."""
        where = f"{self.path}: " if self.path else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{file}:{self.line}:{self.column}: {self.severity}: {where}{self.message}{remedy}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the known word nearest to a mistyped one as a remedy, or the list of what there is."""
    choices = sorted(known)
    near = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{near[0]}`?"
    if not choices:
        return ""
    return f"known here: {', '.join(choices[:40])}"
