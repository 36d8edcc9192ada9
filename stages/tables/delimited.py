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
from .text_files import BATCH_CHARACTERS, BATCH_ROWS, Reading, text_array

MAX_CELL = 1 << 26
"""Most characters in a cell."""
_NO_CHARACTER = "\U0010ffff"
"""No text holds it: Unicode keeps it for uses within a program."""
_END = '\U0010fffe"'
"""A line that is put after the last one: it is the row `_ENDED`, unless a quotation mark is open there."""
_ENDED = [_END]
_BLOCK_ROWS = 128
_QUOTED = re.compile('[\r\n\t,"\ufeff]')


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


CSV = Dialect(",", quotes=True)
TSV = Dialect("\t", quotes=None)
TEXT = Dialect(None, quotes=False, header=False)


def read_delimited(
    reading: Reading, dialect: Dialect, columns: ColumnNames, *, max_cell: int = MAX_CELL
) -> Iterator[pa.RecordBatch]:
    """Read a file's cells as strings.

    A row is left out, or refused, if it has more or fewer cells than the header, or a cell that is not text. Notes
    tell of quoted cells that hold what a reader of lines would take for rows, and of a cell that goes on after its
    closing quotation mark.

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
    csv.field_size_limit(max_cell)
    done = 0
    for strict in (True, False):
        to_skip = done
        try:
            for batch in _read_rows(reading, dialect, columns, strict=strict):
                skipped = min(to_skip, len(batch))
                to_skip -= skipped
                yield batch.slice(skipped)
                done += len(batch) - skipped
            return
        except csv.Error as error:
            if "expected after" not in str(error):
                raise TableError(f"{reading.file}, {error}; is a quotation mark left open?") from None
            place = str(error).partition(":")[0]
            reading.note(
                f"{reading.file}, {place}: text follows the quotation mark that ends a cell; such marks are dropped, "
                "as other readers do; write two for one that belongs to the text, or pass `quotes=False`"
            )


def _read_rows(reading: Reading, dialect: Dialect, columns: ColumnNames, *, strict: bool) -> Iterator[pa.RecordBatch]:
    """Read a file's cells as `read_delimited` says.

    Raises:
        csv.Error: a cell is too long; or it goes on after a quotation mark that ends it, and ``strict`` is set.
    """
    rows = csv.reader(
        itertools.chain(reading.lines(), [_END]),
        delimiter=dialect.delimiter or _NO_CHARACTER,
        quoting=csv.QUOTE_MINIMAL if dialect.quotes else csv.QUOTE_NONE,
        strict=strict,
    )
    try:
        first, blank = next(rows), 0
        while not first:
            first, blank = next(rows), blank + 1
        checked = _CheckedRows(reading, dialect, _names(first, reading, dialect, columns), columns)
        batch, size = checked.no_cells(), reading.characters
        block, line = ([], rows.line_num) if dialect.header else ([*[[]] * blank, first], -1)
        while block := [*block, *itertools.islice(rows, _BLOCK_ROWS)]:
            checked.add(block, batch, lines=rows.line_num - line)
            block, line = [], rows.line_num
            if len(batch[0]) >= BATCH_ROWS or reading.characters - size > BATCH_CHARACTERS:
                yield checked.record_batch(batch)
                batch, size = checked.no_cells(), reading.characters
        yield checked.record_batch(batch)
    except csv.Error as error:
        raise csv.Error(f"line {rows.line_num:,}: {error}") from None
    checked.note()


class _CheckedRows:
    """Numbers and checks the rows of a file, and sorts the cells of good rows into columns."""

    def __init__(self, reading: Reading, dialect: Dialect, names: list[str], columns: ColumnNames) -> None:
        self._reading, self._dialect, self._names = reading, dialect, names
        self._kept = [i for i, name in enumerate(names) if columns.keep_others or name in columns.names()]
        self._number = 0
        self._joined, self._first_joined, self._joined_lines = 0, 0, 0  # rows that look like several

    def no_cells(self) -> list[list[str]]:
        """Return an empty column for each column to read."""
        return [[] for _ in self._kept]

    def record_batch(self, cells: list[list[str]]) -> pa.RecordBatch:
        names = [self._names[i] for i in self._kept]
        return pa.RecordBatch.from_arrays([text_array(column) for column in cells], names)

    def add(self, rows: list[list[str]], cells: list[list[str]], *, lines: int) -> None:
        """Add the cells of good rows to columns.

        Args:
            rows: Some rows of the file, in order.
            cells: The columns.
            lines: How many lines the rows were read from.
        """
        width = len(self._names)
        if lines == len(rows) and self._reading.is_text and all(len(r) == width for r in rows) and rows[-1] != _ENDED:
            self._number += len(rows)
        else:
            rows = [row for row in rows if row or width == 1]  # a blank line is a row in a table of one column
            rows = [row or [""] for row in rows if row != _ENDED]
            rows = [row for row in rows if self._is_good(row)]
        for column, i in zip(cells, self._kept, strict=True):
            column += [row[i] for row in rows]

    def note(self) -> None:
        """Tell of the rows that look like several."""
        if self._joined:
            self._reading.note(
                f"{self._reading.file}, row {self._first_joined:,}: a quoted cell holds lines that look like whole rows"
                f" (such rows: {self._joined:,}; such lines in them: {self._joined_lines:,}); if their quotation marks "
                "belong to the texts, pass `quotes=False`"
            )

    def _is_good(self, row: list[str]) -> bool:
        """Number and check a row; leave it out if it is bad."""
        self._number += 1
        _require_closed(row, f"{self._reading.file}, row {self._number:,}")
        if self._dialect.quotes and (found := _lines_like_rows(row, self._dialect)) > 1:
            self._first_joined = self._first_joined or self._number
            self._joined += 1
            self._joined_lines += found
        if problem := self._problem(row):
            self._reading.leave_out(self._number, f"row {self._number:,}: {problem}")
        return not problem

    def _problem(self, row: list[str]) -> str:
        """Return why a row cannot be read; an empty string if it can."""
        if len(row) != len(self._names):
            split = self._dialect.name if len(row) > len(self._names) else "line end"
            advice = f"put a text that holds a {split} in quotation marks and close them"
            if not self._dialect.quotes:
                advice = f"a text can hold no {split}, unless quotation marks enclose cells (`quotes=True`)"
            first, cells = "header" if self._dialect.header else "first row", "cell" if len(row) == 1 else "cells"
            return f"it has {len(row)} {cells} where the {first} has {len(self._names)}; {advice}"
        bad = next((i for i in self._kept if not is_text(row[i])), None)
        return "" if bad is None else f"the column {self._names[bad]!r} {self._reading.encoding_problem(row[bad])}"


def _require_closed(row: list[str], place: str) -> None:
    """Refuse a row that the end of the file cuts within quotation marks."""
    if row[-1].endswith(_END[:-1]):
        raise TableError(
            f"{place}: a quotation mark opens a cell and is never closed; close it, write two for one that belongs to "
            "the text, or pass `quotes=False` if all of them do"
        )


def _names(first: list[str], reading: Reading, dialect: Dialect, columns: ColumnNames) -> list[str]:
    """Return the names of the columns: the first row, or numbers; check that the columns to read are there."""
    if first == _ENDED:
        raise TableError(f"{reading.file} has no header: its lines are blank, or it is no text")
    _require_closed(first, f"{reading.file}, first row")
    if not is_text(text := "".join(first)) and dialect.header:
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
        if text.startswith("sep="):
            advice = "; its first line is a note for Excel: remove it, and pass the `delimiter` that it names"
        elif len(first) == 1 and any(mark in text for mark in ";\t|,"):
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
    marked, is_open, widths = 0, False, set[int]()
    # Lines: the first with a mark that stands elsewhere; the last and the first that begin a cell of several lines.
    odd, opened, joined = 0, 0, 0
    for number, line in enumerate((line.rstrip("\r\n") for line in reading.lines()), 1):
        if line:
            widths.add(line.count(dialect.delimiter))
        if '"' in line:
            marked += len(begins.findall(line))
            match = None if odd else line_of_cells.fullmatch('"' * is_open + line)
            odd = odd or number * (match is None)
            if match and match["open"] is not None and (match.start("open") > 0 or not is_open):
                opened = number
            is_open = match is not None and match["open"] is not None
            joined = joined or opened
    odd = odd or opened * is_open
    if joined and not odd and len(widths) == 1:
        raise TableError(
            f"{reading.file}, line {joined:,}: a quotation mark begins a cell that another one ends further down, and "
            "each of these lines looks like a row; pass `quotes=False` if they are rows, `quotes=True` if they are one"
        )
    if marked:
        what = f"are text: one in line {odd:,} does not stand as in CSV" if odd else "enclose cells, as in CSV"
        reading.note(f"{reading.file}: {marked:,} cells begin with a quotation mark; the marks {what} (see `quotes`)")
    return marked > 0 and not odd


def _lines_like_rows(row: list[str], dialect: Dialect) -> int:
    """Count the lines of a row that have as many delimiters as a row has between its cells."""
    delimiter = dialect.delimiter or _NO_CHARACTER
    lines = re.split("[\r\n]+", delimiter.join(row))
    return sum(line.count(delimiter) == len(row) - 1 for line in lines)
