"""What a check found."""

from collections.abc import Iterable
from typing import Literal

import msgspec

Verdict = Literal["ok", "skipped", "warning", "failed"]

_ORDER: tuple[Verdict, ...] = ("ok", "skipped", "warning", "failed")


class Diagnosis(msgspec.Struct, frozen=True):
    """The outcome of one check: what was found, and what a person should do."""

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


def worst(diagnoses: Iterable[Diagnosis]) -> Verdict:
    """Return the worst verdict."""
    return max((diagnosis.verdict for diagnosis in diagnoses), key=_ORDER.index, default="ok")
