"""Rows of the table in docs/benchmarks.md: what was measured, what was aimed at, what came out.

A benchmark puts its rows into its result under `rows`, so that they are in the JSON too, and can be printed later.
"""

from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]


def row(what: str, measured: str, *, aim: str = "–", met: bool | None = None) -> Row:
    """Make a row; `met` is None where nothing was aimed at."""
    return {"what": what, "aim": aim, "measured": measured, "met": met}


def at_least(what: str, value: float, aim: float, *, measured: str = "") -> Row:
    """Make a row of a figure that is to be as large as its aim; `measured` is how it is put, if not as the number."""
    return row(what, measured or f"{value:g}", aim=f"≥ {aim:g}", met=value >= aim)


def at_most(what: str, value: float, aim: float, *, unit: str = "", measured: str = "") -> Row:
    """Make a row of a figure that is to be as small as its aim; `unit` is that of both."""
    unit = f" {unit}" if unit else ""
    return row(what, measured or f"{value:g}{unit}", aim=f"≤ {aim:g}{unit}", met=value <= aim)


def markdown(results: Mapping[str, Any]) -> str:
    """Return the rows of all results as lines of a Markdown table, and the tables that results bring of their own."""
    lines = ["| what | name in `make bench` | aim | measured |", "| --- | --- | --- | --- |"]
    tables: list[str] = []
    for name, result in results.items():
        if name == "machine":
            continue
        for each in _rows(result):
            verdict = "" if each["met"] is None else ", met" if each["met"] else ", **missed**"
            lines.append(f"| {each['what']} | `{name}` | {each['aim']} | {each['measured']}{verdict} |")
        if table := result.get("table"):
            tables.append(f"\n{name}:\n\n{table}")
    return "\n".join([*lines, *tables])


def missed(results: Mapping[str, Any]) -> list[str]:
    """Name what was aimed at and not reached."""
    return [
        f"{name}: {each['what']}: {each['measured']}, aim {each['aim']}"
        for name, result in results.items()
        if name != "machine"
        for each in _rows(result)
        if each["met"] is False
    ]


def unjudged(results: Mapping[str, Any]) -> list[str]:
    """Name results that have nothing to be judged by, as in a file of before there were rows."""
    return [name for name, result in results.items() if name != "machine" and not _rows(result)]


def closing(results: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return what is to be said at the end, and whether every aim was met."""
    lines = [f"missed: {line}" for line in missed(results)]
    judged = [each for name, result in results.items() if name != "machine" for each in _rows(result)]
    aims = sum(each["met"] is not None for each in judged)
    without = (
        [f"not judged, because the result has no rows: {', '.join(names)}"] if (names := unjudged(results)) else []
    )
    verdict = f"{len(lines)} of {aims} aims missed" if lines else f"all {aims} aims met"
    return [*lines, *without, verdict], not lines


def grid(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(result: Mapping[str, Any]) -> list[Row]:
    if "skipped" in result:
        return [row("skipped", str(result["skipped"]))]
    rows: list[Row] = result.get("rows", [])
    return rows
