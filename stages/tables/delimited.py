"""CSV, TSV and plain text files: how cells are read, and how cells are written so that every reader gets them back."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa

from ...cache.documents import is_text
from ...cache.errors import TableError
from ..settings import TableSettings
from .columns import ColumnNames
from .text_files import BATCH_CHARACTERS, BATCH_ROWS, Reading

MAX_CELL = 1 << 26
"""Most characters in a cell."""
_QUOTED = re.compile('[\r\n\t,"]')


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How the cells of a file are told apart.

    Attributes:
        delimiter: The character between two cells; None where a line is one cell.
        quotes: Whether quotation marks enclose cells, as in CSV; None: what `_encloses` says of the file.
        header: Whether the first row names the columns.
    """

    delimiter: str | None
    quotes: bool | None
    header: bool = True

    def chosen(self, settings: TableSettings) -> Dialect:
        """Return the dialect of a file for which the user has set some of this."""
        fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: value for name, value in fields.items() if value is not None})

    @property
    def name(self) -> str:
        """The name of the delimiter in a message."""
        return {",": "comma", "\t": "tab", ";": "semicolon", " ": "space"}.get(
            self.delimiter or "", repr(self.delimiter)
        )

    def line(self, cells: Sequence[str]) -> str:
        """Return a row as a line. A cell that holds a tab, a comma, a quotation mark or a line end is quoted."""
        quoted = ('"' + cell.replace('"', '""') + '"' if _QUOTED.search(cell) else cell for cell in cells)
        return (self.delimiter or "").join(quoted) + "\n"

    def cells(self, line: str) -> list[str]:
        """Return the cells of a line without quotation marks; none of a blank line."""
        line = line.rstrip("\r\n")
        return line.split(self.delimiter) if line and self.delimiter else [line] if line else []


CSV = Dialect(",", quotes=True)
TSV = Dialect("\t", quotes=None)
TEXT = Dialect(None, quotes=False, header=False)


def read_delimited(
    reading: Reading, dialect: Dialect, columns: ColumnNames, *, max_cell: int = MAX_CELL
) -> Iterator[pa.RecordBatch]:
    """Read a file's cells as strings.

    A row is left out, or refused, if it has more or fewer cells than the header, or a cell that is not text. A note
    tells of quoted cells that hold what a reader of lines would take for rows.

    Args:
        reading: The file.
        dialect: How cells are told apart.
        columns: The columns to read.
        max_cell: Most characters in a cell.

    Raises:
        TableError: there is no header, a column is missing, a row is bad, a cell is too long, the file ends within a
            quoted cell, or its quotation marks can be read in two ways.
        UnicodeError: the file cannot be decoded.
    """
    if dialect.quotes is None:
        dialect = dataclasses.replace(dialect, quotes=_encloses(reading, dialect))
    rows = _rows(reading, dialect, max_cell)
    first = next(rows, None)
    if first is None:
        raise TableError(f"{reading.file} has no header: its lines are blank, or it is no text")
    names = _names(first[1], reading, dialect, columns)
    rows = rows if dialect.header else itertools.chain([first], rows)
    kept = [i for i, name in enumerate(names) if columns.keep_others or name in columns.names()]
    schema = pa.schema([(names[i], pa.large_string()) for i in kept])
    batch, characters = list[list[str]](), 0
    joined = list[int]()  # the first row of several lines that look like rows, how many such rows, and their lines
    for number, row, lines in rows:
        if len(lines) > 1 and (found := _lines_like_rows(lines, dialect, len(names))) > 1:
            joined = [joined[0], joined[1] + 1, joined[2] + found] if joined else [number, 1, found]
        characters += sum(map(len, lines))
        if problem := _problem(row, names, kept, dialect, reading):
            reading.leave_out(number, f"row {number:,}: {problem}")
        else:
            batch.append([row[i] for i in kept])
        if len(batch) == BATCH_ROWS or characters > BATCH_CHARACTERS:
            yield _record_batch(batch, schema)
            batch, characters = [], 0
    yield _record_batch(batch, schema)
    if joined:
        reading.note(
            f"{reading.file}, row {joined[0]:,}: a quoted cell holds lines that look like whole rows; {joined[1]:,} "
            f"rows hold {joined[2]:,} such lines; if their quotation marks belong to the texts, pass `quotes=False`"
        )


def _rows(reading: Reading, dialect: Dialect, max_cell: int) -> Iterator[tuple[int, list[str], list[str]]]:
    """Split a file into rows. Blank lines are left out, except in a table of one column.

    Yields:
        Each row's number (the header's is 0), its cells, and the lines that it was read from.
    """
    lines = list[str]()
    ended = False

    def keep_lines() -> Iterator[str]:
        nonlocal ended
        for line in reading.lines():
            lines.append(line)
            yield line
        ended = True

    rows: Iterator[list[str]] = map(dialect.cells, keep_lines())
    if dialect.quotes and dialect.delimiter:
        csv.field_size_limit(max_cell)
        rows = csv.reader(keep_lines(), delimiter=dialect.delimiter)
    number, width = 0 if dialect.header else 1, 0
    try:
        for cells in rows:
            if ended:  # the reader came to the end of the file within a row
                raise TableError(
                    f"{reading.file}, row {number:,}: a quotation mark opens a cell and is never closed; close it, "
                    "write two for one that belongs to the text, or pass `quotes=False` if all of them do"
                )
            if cells or width == 1:
                width = width or len(cells)
                yield number, cells or [""], lines
                number += 1
            lines.clear()
    except csv.Error as error:
        raise TableError(f"{reading.file}, row {number:,}: {error}; is a quotation mark left open?") from None


def _problem(row: list[str], names: list[str], kept: list[int], dialect: Dialect, reading: Reading) -> str:
    """Return why a row cannot be read; an empty string if it can."""
    if len(row) != len(names):
        advice = f"put a text that holds a {dialect.name} in quotation marks and close them"
        if not dialect.quotes:
            advice = f"a text can hold no {dialect.name}, unless quotation marks enclose cells (`quotes=True`)"
        first, cells = "header" if dialect.header else "first row", "cell" if len(row) == 1 else "cells"
        return f"it has {len(row)} {cells} where the {first} has {len(names)}; {advice}"
    if is_text("".join([row[i] for i in kept])):
        return ""
    name, cell = next((names[i], row[i]) for i in kept if not is_text(row[i]))
    return f"the column {name!r} {reading.encoding_problem(cell)}"


def _names(first: list[str], reading: Reading, dialect: Dialect, columns: ColumnNames) -> list[str]:
    """Return the names of the columns: the first row, or numbers; check that the columns to read are there."""
    if not is_text(text := "".join(first)):
        raise TableError(f"{reading.file}, its first row {reading.encoding_problem(text)}")
    advice = ""
    if dialect.delimiter is None and not dialect.header:
        if reading.settings.header is None and ("\t" in text or text == columns.text):
            like = "holds a tab, as in a table" if "\t" in text else f"is {text!r}, as a header"
            raise TableError(
                f"{reading.file}: each line of a .txt file is a text, but its first line {like}; pass `delimiter` if "
                "it is a table, `header=True` if it is a header, or `header=False` if it is a text"
            )
        names = [columns.text]
    elif not dialect.header:
        names = [str(number) for number in range(1, len(first) + 1)]
    else:
        names = first
        if len(first) == 1 and any(mark in text for mark in ";\t|,"):
            advice = f"; if its cells do not stand between {dialect.name}s, pass `delimiter`"
        elif not set(first) & set(columns.names()):
            advice = "; if the first row is no header, pass `header=False`"
    columns.require(names, str(reading.file), advice)
    return names


def _encloses(reading: Reading, dialect: Dialect) -> bool:
    """Return whether a file's quotation marks enclose cells: whether each stands where a CSV writer puts it.

    A CSV writer puts a mark at each end of a cell, and doubles those inside. A note tells what was decided.

    Raises:
        TableError: they may enclose cells of several lines, or else each of these lines is a row.
    """
    assert dialect.delimiter is not None
    between = re.escape(dialect.delimiter)
    inside = '(?:[^"]++|"")*+'
    cell = f'(?:"{inside}"|[^"{between}]*+)'
    line_of_cells = re.compile(f'(?:{cell}{between})*+(?:{cell}|(?P<open>"{inside}))')
    begins = re.compile(f'(?:^|{between})"')
    marked, enclosing, is_open, joined = 0, True, False, False
    widths = set[int]()
    for number, line in enumerate((line.rstrip("\r\n") for line in reading.lines()), 1):
        if line:
            widths.add(line.count(dialect.delimiter))
        if '"' in line:
            marked += len(begins.findall(line))
            match = line_of_cells.fullmatch('"' * is_open + line) if enclosing else None
            enclosing, is_open = match is not None, match is not None and match["open"] is not None
        if is_open and not joined:
            joined, where = True, number
    enclosing &= not is_open
    if marked and enclosing and joined and len(widths) == 1:
        raise TableError(
            f"{reading.file}, line {where:,}: a quotation mark begins a cell that another one ends further down, and "
            "each of these lines looks like a row; pass `quotes=False` if they are rows, `quotes=True` if they are one"
        )
    if marked:
        what = "enclose cells, as in CSV" if enclosing else "belong to the texts: they do not stand as in CSV"
        reading.note(f"{reading.file}: {marked:,} cells begin with a quotation mark; the marks {what} (see `quotes`)")
    return enclosing and marked > 0


def _lines_like_rows(lines: list[str], dialect: Dialect, width: int) -> int:
    """Count the lines of one row that each have the cells of a row, with or without regard to quotation marks."""
    delimiter = dialect.delimiter or ","
    parsed = (next(csv.reader([line], delimiter=delimiter), []) for line in lines)
    return sum(width in (len(cells), len(dialect.cells(line))) for cells, line in zip(parsed, lines, strict=True))


def _record_batch(rows: list[list[str]], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [[]] * len(schema)
    arrays = [pa.array(column, pa.large_string()) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
