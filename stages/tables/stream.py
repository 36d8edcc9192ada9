"""Texts that come line by line, from a terminal or another program, and answers in JSON lines."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from typing import Any

from ...cache.documents import is_text
from ..settings import LineFormat
from .json_lines import parse_object, repeats

_READ_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineFields:
    """What a line is, and where its text stands."""

    format: LineFormat
    text: str  # the column of the text
    pair: str | None  # the column of the second text, or None


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the input.

    Attributes:
        cells: Its columns; none where it cannot be parsed.
        problem: Why it has no text, or an empty string.
    """

    cells: dict[str, Any]
    problem: str


def read_lines(source: io.BufferedReader, fields: LineFields, *, most: int) -> Iterator[list[Line]]:
    """Yield the lines of a stream as they come: all that are there, up to so many at a time. It waits for the first."""
    held, first = b"", True
    while piece := source.read1(_READ_BYTES):
        *lines, held = (held + piece).split(b"\n")
        if first and lines:
            lines[0], first = lines[0].removeprefix(b"\xef\xbb\xbf"), False
        for start in range(0, len(lines), most):
            yield [_parse(line, fields) for line in lines[start : start + most]]
    if held:  # a last line without an end
        yield [_parse(held.removeprefix(b"\xef\xbb\xbf") if first else held, fields)]


def _parse(line: bytes, fields: LineFields) -> Line:
    try:
        text = line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        return Line({}, f"byte {line[error.start]:#04x} at position {error.start + 1:,} is not UTF-8")
    cells: dict[str, Any] = {fields.text: text}
    if fields.format is LineFormat.JSON:
        cells, problem = parse_object(text.strip())
        if problem:
            return Line({}, problem)
    for column in (fields.text, fields.pair):
        if column is None:
            continue
        value = cells.get(column)
        if fields.format is LineFormat.JSON and repeats(text, column):
            return Line(cells, f"it has {column!r} twice; leave one of them")
        if not isinstance(value, str):
            return Line(cells, f"it has no text in {column!r}")
        if not is_text(value):
            return Line(cells, f"{column!r} holds half of a surrogate pair, which is no character")
        if not value.strip():
            return Line(cells, f"its text ({column!r}) is blank")
    return Line(cells, "")


def json_line(cells: dict[str, Any]) -> str:
    """Return an object as a line. Half of a surrogate pair, which UTF-8 does not have, stays an escape."""
    line = json.dumps(cells, ensure_ascii=False)
    return (line if is_text(line) else json.dumps(cells)) + "\n"
