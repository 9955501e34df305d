"""Rows of the table in docs/benchmarks.md: what was measured, what was aimed at, what came out.

A benchmark puts its rows into its result under `rows`, so that they are in the JSON too, and can be printed later.
"""

from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]


def row(what: str, measured: str, *, aim: str = "–", met: bool | None = None) -> Row:
    """Make a row; `met` is None where nothing was aimed at."""
    return {"what": what, "aim": aim, "measured": measured, "met": met}


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
