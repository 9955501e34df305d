"""Templates and how values look in them. Whatever comes from a device is escaped, always."""

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from gateway.wire.times import rfc3339

_MAX_SHOWN: Final = 160
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")

Context = Mapping[str, object]


class Pages:
    """Renders templates of the package."""

    def __init__(self, *, gives_rollouts: bool = False, watches_drift: bool = False) -> None:
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("cloud_bridge.console"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(_FILTERS)
        self._templates.globals["gives_rollouts"] = gives_rollouts
        self._templates.globals["watches_drift"] = watches_drift

    def render(self, template: str, context: Context) -> str:
        """Render one template."""
        return self._templates.get_template(template).render(context)

    def fragments(self, names: tuple[str, ...], context: Context) -> dict[str, str]:
        """Render the fragments of a page by name."""
        return {name: self.render(f"fragments/{name}.html", context) for name in names}


def moment(at: str | int | None) -> Markup:
    """Show a time, given as RFC 3339 or as nanoseconds, in UTC; the page's script turns it into an age.

    A device may have sent any text as a time: what is no time is shown as it is.
    """
    if at is None or at == "":
        return Markup("–")
    if isinstance(at, int):
        if not 0 < at < 2**63:
            return Markup("–")
        at = rfc3339(at)
    try:
        parsed = datetime.fromisoformat(at)
        parsed = parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        return Markup("{}").format(short(at, 40))
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        parsed.isoformat(timespec="milliseconds"), f"{parsed:%Y-%m-%d %H:%M:%S}", f"{parsed:%m-%d %H:%M:%S}"
    )


def short(text: str, limit: int = _MAX_SHOWN) -> str:
    """Cut a text from a device to what fits."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def size(count: int) -> str:
    """Show a number of bytes."""
    amount, unit = float(count), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


def figure(value: float | None) -> str:
    """Show a measured value with four significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4g}"


def grouped(count: int) -> str:
    """Show a count with its thousands apart."""
    return f"{count:,}".replace(",", "\N{THIN SPACE}")


def percent(fraction: float) -> str:
    """Show a fraction as the width of a bar, 0 to 100."""
    return f"{100 * min(1.0, max(0.0, fraction)):.1f}" if math.isfinite(fraction) else "0"


def segment(text: str) -> str:
    """Quote a text as one segment of a path or one value of a query."""
    return quote(text, safe="", errors="replace")


_FILTERS: Final[dict[str, Callable[..., object]]] = {
    "moment": moment,
    "short": short,
    "size": size,
    "figure": figure,
    "grouped": grouped,
    "percent": percent,
    "segment": segment,
}
