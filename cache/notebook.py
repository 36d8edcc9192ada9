"""How a notebook shows what headstart returns: plain tables, in which every text is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import SettingsError


def summary(title: str, facts: Mapping[str, str], rows: Sequence[Sequence[str]] = ()) -> str:
    """Return HTML: a title, a table of names and values, and a table of rows, of which the first is the header."""
    named = "".join(_row("td", pair) for pair in facts.items())
    body = "".join(_row("td" if number else "th", cells) for number, cells in enumerate(rows))
    tables = "".join(f"<table>{part}</table>" for part in (named, body) if part)
    return f"<div><strong>{html.escape(title)}</strong>{tables}</div>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def import_pandas() -> Any:
    """Return pandas, which headstart does without elsewhere.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise SettingsError("to_frame returns a table of pandas, which is not installed: pip install pandas") from None
    return pandas
