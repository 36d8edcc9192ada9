"""JSON lines files: one object a line."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from ...cache.documents import is_text
from ...cache.errors import TableError
from .columns import ColumnNames
from .text_files import numbered_lines, read_in_blocks

_BLOCK_BYTES = (1 << 24, 1 << 28)
_PEEK_LINES = 1000
"""Lines that are looked at for the names and kinds of the columns."""
JSON_CELL = pa.json_(pa.large_string())
"""Arrow's type of a column whose cells are JSON texts. A null is a row that lacks the column; JSON's null is a cell."""


def read_json_lines(
    file: Path, columns: ColumnNames, *, block_bytes: Sequence[int] = _BLOCK_BYTES
) -> Iterator[pa.RecordBatch]:
    """Read the columns of texts and labels, by Arrow.

    Args:
        file: The file, which may be compressed.
        columns: The columns to read.
        block_bytes: Sizes of the blocks that a row must fit in, in the order in which they are tried.

    Raises:
        TableError: a column is missing, or a row is longer than the largest block.
        pyarrow.ArrowException: the file cannot be parsed; `require_json_lines` tells where and why.
    """
    parsing = pa.json.ParseOptions(explicit_schema=_schema(file, columns), unexpected_field_behavior="ignore")

    def read(size: int) -> Iterator[pa.RecordBatch]:
        with pa.input_stream(str(file)) as stream:
            yield from pa.json.open_json(stream, pa.json.ReadOptions(block_size=size), parsing)

    yield from read_in_blocks(read, block_bytes, file)


def read_json_cells(file: Path, columns: ColumnNames, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Read all columns, whatever their values are. Slower than `read_json_lines`: Python parses each line.

    Args:
        file: The file, which may be compressed.
        columns: The columns of texts and labels.
        batch_rows: Most rows in a batch.

    Yields:
        Batches of `JSON_CELL` columns: those that a row of the batch has.

    Raises:
        TableError: a column is missing, or a line is bad.
        UnicodeDecodeError: the file is not UTF-8.
    """
    _schema(file, columns)
    rows = _objects(file, columns, errors="strict")
    while batch := list(itertools.islice(rows, batch_rows)):
        names = dict.fromkeys(name for row in batch for name in row)
        cells = [[_dumps(row[name]) if name in row else None for row in batch] for name in names]
        arrays = [pa.ExtensionArray.from_storage(JSON_CELL, pa.array(c, pa.large_string())) for c in cells]
        yield pa.RecordBatch.from_arrays(arrays, list(names))


def require_json_lines(file: Path, columns: ColumnNames) -> None:
    """Find the first bad line. Arrow counts rows from the start of a block, and so cannot name the line.

    Raises:
        TableError: there is a bad line.
    """
    for _ in _objects(file, columns, errors="replace"):
        pass


class JsonKinds:
    """The kinds of the values in each column of JSON cells."""

    def __init__(self) -> None:
        self._kinds: dict[str, set[str]] = {}

    def add(self, cells: pa.Table) -> None:
        """Take note of some rows; columns of other types are passed over."""
        for field, column in zip(cells.schema, cells.columns, strict=True):
            if field.type == JSON_CELL:
                kinds = self._kinds.setdefault(field.name, set())
                kinds.update(_cell_kind(cell) for cell in column.to_pylist() if cell is not None)

    def types(self) -> dict[str, pa.DataType]:
        """Return the Arrow type that fits all values of each column; `JSON_CELL` where no simple type does."""
        return {name: _fitting_type(kinds - {"null"}) for name, kinds in self._kinds.items()}


def _cell_kind(cell: str) -> str:
    """Return what the first character of a JSON text says; of a number, also whether a float or an int64 holds it."""
    kinds = {'"': "string", "t": "bool", "f": "bool", "n": "null", "[": "nested", "{": "nested"}
    if cell[0] in kinds:
        return kinds[cell[0]]
    if not cell.lstrip("-").isdigit():
        return "float"
    return "int" if abs(int(cell)) <= 1 << 53 else "int64" if -(1 << 63) <= int(cell) < 1 << 63 else "huge"


def _fitting_type(kinds: set[str]) -> pa.DataType:
    """Return the simplest type that holds values of all these kinds exactly."""
    fitting: tuple[tuple[set[str], pa.DataType], ...] = (
        (set(), pa.null()),
        ({"string"}, pa.large_string()),
        ({"bool"}, pa.bool_()),
        ({"int", "int64"}, pa.int64()),
        ({"int", "float"}, pa.float64()),
    )
    return next((kind for held, kind in fitting if kinds <= held), JSON_CELL)


def _objects(file: Path, columns: ColumnNames, *, errors: str) -> Iterator[dict[str, Any]]:
    """Parse and check each line."""
    kinds = {column: "text" for column in (columns.text, columns.pair) if column is not None}
    for number, line in numbered_lines(file, errors=errors):
        where = f"{file}, line {number:,}"
        try:
            row = json.loads(line, parse_float=_finite, parse_constant=_finite)
        except RecursionError:
            raise TableError(f"{where}: it is nested too deep") from None
        except ValueError as error:
            raise TableError(f"{where}: not JSON ({error}); it must hold one object a line") from None
        if not isinstance(row, dict):
            raise TableError(f"{where}: not a JSON object")
        if "\\u" in line:  # a surrogate can only be written as an escape
            for column in row if columns.keep_others else columns.names():
                if not is_text(column + _dumps(row.get(column))):
                    raise TableError(
                        f"{where}: {column!r} holds half of a surrogate pair, which is no character; correct it"
                    )
        for column in columns.names():
            value = row.get(column)
            if value is not None and (kind := _kind(value)) != kinds.setdefault(column, kind):
                raise TableError(f"{where}: {column!r} holds {kind}, where {kinds[column]} is expected")
        yield row


def _schema(file: Path, columns: ColumnNames) -> pa.Schema:
    """The schema of the columns of texts and labels, by the first lines: Arrow would type, and check, all columns."""
    names: dict[str, None] = {}
    label: object = None
    for _, line in itertools.islice(numbered_lines(file), _PEEK_LINES):
        with contextlib.suppress(ValueError, RecursionError):  # a bad line is reported when it is read
            row = json.loads(line)
            names |= dict.fromkeys(row if isinstance(row, dict) else ())
            label = row.get(columns.label) if isinstance(row, dict) and label is None else label
    if names:
        columns.require(list(names), str(file))
    types = {column: pa.string() for column in (columns.text, columns.pair) if column is not None}
    if columns.label is not None:
        types[columns.label] = pa.string() if label is None else pa.array([label]).type
    return pa.schema(list(types.items()))


def _kind(value: Any) -> str:
    """The kind of a JSON value, in words."""
    if isinstance(value, bool):
        return "a truth value"
    names = {str: "text", int: "a whole number", float: "a number with a fraction", list: "a list", dict: "an object"}
    return names[type(value)]


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _finite(number: str) -> float:
    """Parse a number with a fraction; Python's parser also reads NaN, Infinity, and numbers too large for a float."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is not a number that JSON can hold")
    return value
