"""CSV and TSV files: how cells are read, and how cells are written so that every reader gets them back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from ...cache.errors import TableError
from .columns import ColumnNames, skip_advice
from .text_files import numbered_lines, read_in_blocks

_BLOCK_BYTES = (1 << 18, 1 << 24, 1 << 28)
"""Arrow holds many blocks of a CSV file in memory, so small blocks are tried first."""
_QUOTED = re.compile('[\r\n\t,"]')


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How the cells of a file are told apart.

    Attributes:
        delimiter: The character between two cells.
        delimiter_name: Its name in a message.
    """

    delimiter: str
    delimiter_name: str

    def line(self, cells: Sequence[str]) -> str:
        """Return a row as a line. A cell that holds a tab, a comma, a quotation mark or a line end is quoted."""
        quoted = ('"' + cell.replace('"', '""') + '"' if _QUOTED.search(cell) else cell for cell in cells)
        return self.delimiter.join(quoted) + "\n"


CSV = Dialect(",", "comma")
TSV = Dialect("\t", "tab")


def read_delimited(
    file: Path,
    dialect: Dialect,
    columns: ColumnNames,
    *,
    ragged: set[int],
    skip_bad_rows: bool | None,
    block_bytes: Sequence[int] = _BLOCK_BYTES,
) -> Iterator[pa.RecordBatch]:
    """Read a file's cells as bytes.

    Args:
        file: The file, which may be compressed.
        dialect: How cells are told apart.
        columns: The columns to read.
        ragged: Receives the number of each row that has more or fewer cells than the header. No batch holds these
            rows.
        skip_bad_rows: Leave these rows out, instead of raising. None: raise, without the advice to skip them.
        block_bytes: Sizes of the blocks that a row must fit in, in the order in which they are tried.

    Raises:
        TableError: a column is missing, a row is ragged, or a row is longer than the largest block.
        pyarrow.ArrowException: the file cannot be parsed.
    """
    problem = ""

    def on_ragged(row: pa.csv.InvalidRow) -> str:
        nonlocal problem
        number = row.number - 1  # Arrow counts the header
        ragged.add(number)
        cells = "cells" if row.actual_columns > 1 else "cell"
        problem = (
            f"{file}, row {number:,}: it has {row.actual_columns} {cells} where the header has {row.expected_columns}; "
            f"put a text that holds a {dialect.delimiter_name} in quotation marks and close them"
            f"{skip_advice(skip_bad_rows)}"
        )
        return "skip" if skip_bad_rows else "error"

    _, header = next(numbered_lines(file), (0, ""))
    parsing = pa.csv.ParseOptions(
        delimiter=dialect.delimiter,
        newlines_in_values=True,
        invalid_row_handler=on_ragged,
        # In a table of one column, a blank line is a row without text, which is reported and not dropped.
        ignore_empty_lines=len(columns.names()) > 1 or dialect.delimiter in header,
    )

    def read(size: int) -> Iterator[pa.RecordBatch]:
        reading = pa.csv.ReadOptions(use_threads=False, block_size=size)
        try:
            with pa.csv.open_csv(file, reading, parsing) as reader:
                names = reader.schema.names
            columns.require(names, str(file))
            wanted = names if columns.keep_others else columns.names()
            # Bytes, not strings: Arrow refuses a whole block for one bad byte, without naming its row.
            conversion = pa.csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.binary()),
                include_columns=[] if columns.keep_others else wanted,  # none named: all, also two of one name
                strings_can_be_null=False,
            )
            with pa.csv.open_csv(file, reading, parsing, conversion) as reader:
                yield from reader
        except pa.ArrowInvalid:
            if problem and not skip_bad_rows:
                raise TableError(problem) from None
            raise

    yield from read_in_blocks(read, block_bytes, file)
