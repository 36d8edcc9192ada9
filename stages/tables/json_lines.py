"""JSON lines files: one object a line."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ...cache.documents import is_text
from ...cache.errors import TableError
from .columns import ColumnNames
from .text_files import BATCH_CHARACTERS, BATCH_ROWS, Reading

JSON_CELL = pa.json_(pa.large_string())
"""Arrow's type of a column whose cells are JSON texts. A null is a row that lacks the column; JSON's null is a cell."""


def read_json_lines(reading: Reading, columns: ColumnNames) -> Iterator[pa.RecordBatch]:
    """Read the columns of texts and labels, or all columns.

    A row of which a name or a text is no text (half of a surrogate pair, or bytes of another encoding) is left out, or
    refused.

    Yields:
        Batches of strings and of labels of Arrow's types; of `JSON_CELL` columns, those that a row of the batch has,
        where all columns are read.

    Raises:
        TableError: a column is missing, a line is bad, or a label has more than 64 bits.
        UnicodeError: the file cannot be decoded.
    """
    rows, known = _objects(reading, columns), False
    while batch := list(_limited(rows, reading)):
        names = dict.fromkeys(itertools.chain.from_iterable(batch)) if columns.keep_others or not known else {}
        if not known:
            columns.require(list(names), str(reading.file))
            known = True
        if columns.keep_others:
            cells = [[_dumps(row[name]) if name in row else None for row in batch] for name in names]
            arrays = [pa.ExtensionArray.from_storage(JSON_CELL, pa.array(c, pa.large_string())) for c in cells]
        else:
            names = dict.fromkeys(columns.names())
            types = dict.fromkeys(columns.labels())
            arrays = [pa.array([row.get(name) for row in batch], types.get(name, pa.large_string())) for name in names]
        yield pa.RecordBatch.from_arrays(arrays, list(names))


def _limited(rows: Iterator[dict[str, Any]], reading: Reading) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch."""
    end = reading.characters + BATCH_CHARACTERS
    for row in itertools.islice(rows, BATCH_ROWS):
        yield row
        if reading.characters > end:
            return


_KINDS = {
    bool: "a truth value",
    str: "text",
    int: "a whole number",
    float: "a number with a fraction",
    list: "a list",
    dict: "an object",
}


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


def _objects(reading: Reading, columns: ColumnNames) -> Iterator[dict[str, Any]]:
    """Parse and check each line that is not blank."""
    kinds = {column: "text" for column in (columns.text, columns.pair) if column is not None}
    wanted, number = columns.names(), 0
    for line_number, line in enumerate(reading.lines(), 1):
        text = line.strip()
        if not text:
            continue
        number += 1
        row, problem = parse_object(text)
        for column in () if problem else wanted:
            value = row.get(column)
            is_label = column in columns.labels()
            kind = "a number" if is_label and type(value) in (int, float) else _KINDS.get(type(value))
            if kind is not None and kind != kinds.setdefault(column, kind):
                problem = f"{column!r} holds {kind}, where {kinds[column]} is expected"
            if isinstance(value, list) and (mixed := _mixed_items(value)):
                problem = f"{column!r} holds {mixed}; give a list of names"
            if repeats(text, column):
                problem = f"it has {column!r} twice; leave one of them"
        if problem:
            raise TableError(f"{reading.file}, line {line_number:,}: {problem}")
        if "\\u" in line or not reading.is_text:  # a surrogate is written as an escape, or stands for a byte
            cells = ((name, _dumps(row.get(name))) for name in (row if columns.keep_others else wanted))
            if bad := next((cell for cell in cells if not is_text("".join(cell))), None):
                half = "holds half of a surrogate pair, which is no character; correct it"
                problem = half if is_text(line) else reading.encoding_problem("".join(bad))
                reading.leave_out(number, f"line {line_number:,}: {bad[0]!r} {problem}")
                continue
        yield row


def parse_object(text: str) -> tuple[dict[str, Any], str]:
    """Parse a line without white space around it; return the object, and what is wrong with it, or an empty string."""
    try:
        row, end = _DECODER.raw_decode(text)
        if end < len(text):
            raise ValueError(f"more follows after character {end:,}")
    except RecursionError:
        return {}, "it is nested too deep"
    except ValueError as error:
        reason = f"{error.msg}, character {error.pos + 1:,}" if isinstance(error, json.JSONDecodeError) else error
        return {}, f"not JSON ({reason}); it must hold one object a line"
    if not isinstance(row, dict):
        return {}, "not a JSON object; the file must hold one object a line"
    return row, ""


def _mixed_items(values: list[Any]) -> str:
    """Return what is wrong with the items of a list of labels, for which Arrow has no type; else an empty string."""
    kinds = dict.fromkeys("a number" if type(v) in (int, float) else _KINDS[type(v)] for v in values if v is not None)
    if not kinds.keys() & {"a list", "an object"}:
        return "" if len(kinds) < 2 else f"{' and '.join(kinds)} in one list"
    return "a list within a list" if "a list" in kinds else "an object in a list"


def repeats(text: str, name: str) -> bool:
    """Return whether an object has a name more than once: Python's parser keeps the last."""
    if text.count(f'"{name}"') < 2:
        return False
    return [other for other, _ in json.loads(text, object_pairs_hook=list)].count(name) > 1


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _finite(number: str) -> float:
    """Parse a number with a fraction; Python's parser also reads NaN, Infinity, and numbers too large for a float."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is not a number that JSON can hold")
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
