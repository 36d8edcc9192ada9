"""Excel's workbooks (.xlsx): the cells of one sheet, as the texts that a CSV file of it would hold."""

from __future__ import annotations

import datetime
import itertools
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ...cache.errors import SettingsError, TableError
from ..units import number_name
from .columns import ColumnNames
from .text_files import BATCH_ROWS, Reading


def read_excel(reading: Reading, columns: ColumnNames) -> Iterator[pa.RecordBatch]:
    """Read a sheet, the first one or that of the settings; its first row names the columns.

    Whole numbers are read without a fraction, as they are in CSV; dates and times as ISO 8601 has them, a formula as
    the value that Excel saved. Blank rows at the end are no rows.

    Raises:
        SettingsError: openpyxl is not installed, or there is no such sheet.
        TableError: the file is no workbook, a column is missing, or a row has cells beside the columns.
    """
    try:
        import openpyxl
    except ImportError:
        raise SettingsError(f"{reading.file} needs openpyxl: pip install 'headstart[excel]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about styles and the like, which are not read
        try:
            book = openpyxl.load_workbook(reading.file, read_only=True, data_only=True)
        except (zipfile.BadZipFile, KeyError, ValueError, openpyxl.utils.exceptions.InvalidFileException) as error:
            raise TableError(f"{reading.file} is no workbook of Excel: {error}") from None
        try:
            sheets = {sheet.title: sheet for sheet in book.worksheets}  # charts have sheets, too
            wanted = reading.settings.sheet or next(iter(sheets), "")
            if wanted not in sheets:
                raise SettingsError(f"{reading.file} has no sheet {wanted!r}; it has {', '.join(sheets)}")
            sheets[wanted].reset_dimensions()  # what the file says of its size may be wrong, and rows would be missing
            yield from _read_rows(sheets[wanted], reading, columns)
        finally:
            book.close()


def _read_rows(sheet: Any, reading: Reading, columns: ColumnNames) -> Iterator[pa.RecordBatch]:
    rows = (list(map(_text, row)) for row in sheet.iter_rows(values_only=True))
    header = next(rows, [])
    while header and not header[-1]:
        header.pop()
    columns.require(header, str(reading.file))
    kept = [place for place, name in enumerate(header) if columns.keep_others or name in columns.names()]
    names, good = [header[place] for place in kept], _good_rows(rows, len(header), reading)
    while batch := list(itertools.islice(good, BATCH_ROWS)):
        cells = [pa.array([row[place] for row in batch], pa.large_string()) for place in kept]
        yield pa.RecordBatch.from_arrays(cells, names)


def _good_rows(rows: Iterator[list[str]], width: int, reading: Reading) -> Iterator[list[str]]:
    """Yield the rows with ``width`` cells each; blank ones only if another follows."""
    number, blank = 0, 0
    for row in rows:
        if not any(row):
            blank += 1
            continue
        yield from ([""] * width for _ in range(blank))
        number, blank = number + blank + 1, 0
        if any(row[width:]):
            reading.leave_out(number, f"row {number:,}: it has a cell beside the {width} columns of the first row")
            continue
        yield (row + [""] * width)[:width]


def _text(cell: Any) -> str:
    """Return a cell as CSV would hold it."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | datetime.date | datetime.time | type(None)):
        return str(cell)
    if isinstance(cell, int | float):
        return number_name(float(cell)) if isinstance(cell, float) else str(cell)
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return cell.date().isoformat()
    return "" if cell is None else cell.isoformat()
