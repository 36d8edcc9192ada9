"""HTML from values. Text is escaped here and nowhere else: what is not `Html` already becomes text."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..units import plain

_IN_SCRIPT = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
"""What could end a script, or a line of it, as JSON spells it without these characters."""


class Html(str):
    """Markup: it stands on the page as it is."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table that is shown in another way than its value, by which the table is sorted."""

    value: Any
    shown: str | Html
    number: bool = True  # whether it is aligned as a number
    kind: str = ""  # a name of the style sheet
    style: str = ""


def text(value: object) -> Html:
    """Return a text that a browser shows and does not obey; control characters are visible."""
    return value if isinstance(value, Html) else Html(html.escape(plain(str(value))))


def join(parts: Iterable[object]) -> Html:
    """Return one part after the other."""
    return Html("".join(map(text, parts)))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """Return an element. ``class_`` is the attribute class, ``data_x`` data-x; True has no value, None is left out."""
    spelled = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{spelled}>{join(children)}</{name}>")


def in_one_line(value: str) -> str:
    """Return a text of the data without line breaks."""
    return " ".join(value.split())


def paragraph(*parts: object) -> Html:
    """Return a paragraph."""
    return tag("p", *parts)


def details(summary: str, *children: object) -> Html:
    """Return what is shown when its summary is chosen."""
    return tag("details", tag("summary", summary), *children)


def terms(pairs: Mapping[str, object]) -> Html:
    """Return a list of names and what stands for them; what is None is left out."""
    lines = (tag("dt", name) + tag("dd", value) for name, value in pairs.items() if value is not None)
    return tag("dl", *map(Html, lines))


def table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    filtered: bool = False,
    dense: bool = False,
) -> Html:
    """Return a table; the first cell of a row names the row.

    Args:
        caption: What it shows.
        header: The names of the columns.
        rows: Cells: texts, numbers, `Cell`, or None for an empty one.
        filtered: Whether its rows can be sorted and filtered.
        dense: Whether cells stand close together, as in a matrix.
    """
    cells = [[_as_cell(cell) for cell in row] for row in rows]
    names = []
    for column, name in enumerate(header):
        number = next((row[column].number for row in cells if row[column].shown), False)
        content = tag("button", name, type="button") if filtered else name
        names.append(tag("th", content, scope="col", class_="number" if number else None))
    body = [tag("tr", *(_cell(cell, first=not place) for place, cell in enumerate(row))) for row in cells]
    head = tag("thead", tag("tr", *names))
    content = tag("table", tag("caption", tag("span", caption)), head, tag("tbody", *body))
    kinds = " ".join(["scroll", *["filtered"] * filtered, *["dense"] * dense])
    box = tag("div", content, class_=kinds, role="region", tabindex="0", aria_label=caption)
    if not filtered:
        return box
    label = tag("label", "Filter ", Html('<input type="search" placeholder="a word, or column=value">'))
    return tag("div", tag("p", label, tag("output", aria_live="polite")), box, class_="board")


def _as_cell(value: object) -> Cell:
    if isinstance(value, Cell):
        return value
    return Cell(value, shown(value), isinstance(value, int | float) and not isinstance(value, bool))


def _cell(cell: Cell, *, first: bool) -> Html:
    kind = {"class_": "number" if cell.number else cell.kind or None, "style": cell.style or None, "dir": None}
    if not cell.number and not isinstance(cell.shown, Html):
        kind["dir"] = "auto"
    value = None if cell.value is None or cell.shown == str(cell.value) else cell.value
    return tag("th" if first else "td", cell.shown, scope="row" if first else None, data_value=value, **kind)


def shown(value: object) -> str | Html:
    """Return a value as it is shown: whole numbers with commas, others with four decimals."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, Html) else "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def figure(caption: str, plot: Mapping[str, Any], *notes: object, height: int = 360) -> Html:
    """Return a place where the page draws a plot, with its caption, and what stands below it, such as its numbers."""
    place = tag("div", class_="plot", role="img", aria_label=caption, style=f"height:{height}px")
    return tag("figure", tag("figcaption", caption), place, script_json(plot), *notes)


def script_json(value: object) -> Html:
    """Return data for the page's script, which no browser runs."""
    content = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Html(f'<script type="application/json">{content.translate(_IN_SCRIPT)}</script>')


def _plain(value: Any) -> Any:
    """Values of JSON: numbers with six digits, none that is not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, str) or value is None or isinstance(value, int):
        return value
    return [_plain(item) for item in value]
