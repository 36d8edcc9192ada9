"""Times, numbers and texts as they are printed, and as they are read."""

from __future__ import annotations

import math
import re
import unicodedata

_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Control characters that change the direction of text."""


def duration(seconds: float) -> str:
    """Return a time as text: ``41.1 ms``, ``8.9 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def plain(text: str) -> str:
    """Return a text with its control characters escaped: a terminal would obey them, wherever they come from."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cs") or c in _BIDI else c for c in text)


def number_of(text: str) -> float | None:
    """Return the finite number that a text is, in decimal or with an exponent; None if it is none."""
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def number_name(number: float) -> str:
    """Return a number as the name of a class: 1.0 is 1."""
    return str(int(number)) if number.is_integer() and abs(number) < 1 << 53 else repr(number)
