"""Writing a table, whatever it was read from, to a file of any format: batch by batch, in memory that does not grow."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...cache.errors import OutputExistsError, TableError
from ...cache.layout import storage_errors
from ...cache.siblings import partial_path
from .columns import decode_dictionary
from .delimited import Dialect
from .formats import COMPRESSIONS, DIALECTS, Format, file_format
from .json_lines import JSON_CELL

Write = Callable[[pa.Table], None]


def output_format(out: Path) -> Format:
    """Return the format in which a file is written, by its name.

    Raises:
        OutputExistsError: no format is written under such a name.
    """
    kind = file_format(out)
    if kind is None or out.suffix.lower() in COMPRESSIONS:
        raise OutputExistsError(f"{out} must end in .csv, .tsv, .jsonl or .parquet")
    return kind


@contextlib.contextmanager
def open_writer(out: Path, schema: pa.Schema, json_types: Mapping[str, pa.DataType]) -> Iterator[Write]:
    """Write rows to a work file, which takes the output's name at the end of the block. After an error it is removed.

    In CSV and TSV, a value is written as text, a null as an empty cell, a list or a struct as JSON. In JSON lines, a
    date or a time is text, and a float that is not finite is null. In Parquet, a column keeps its type.

    Args:
        out: The file to write.
        schema: All columns. Rows may lack some of them, which are null there.
        json_types: The types in which Parquet holds columns of JSON cells.

    Yields:
        A function that writes some rows.

    Raises:
        TableError: the format cannot hold a column.
        StorageError: the file cannot be written.
    """
    kind, work, problem = output_format(out), partial_path(out), f"cannot write {out}"
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None and kind not in DIALECTS:
        raise TableError(f"the table has two columns {twice!r}, which {out.suffix} cannot hold; rename one of them")
    if kind is Format.PARQUET:
        file = _parquet(work, schema, json_types)
    else:
        file = _json_lines(work, schema) if kind is Format.JSON_LINES else _delimited(work, schema, DIALECTS[kind])
    try:
        with contextlib.ExitStack() as stack:
            with storage_errors(problem):
                write = stack.enter_context(file)

            def write_rows(rows: pa.Table) -> None:
                with storage_errors(problem):
                    write(rows)

            yield write_rows
            with storage_errors(problem):
                stack.close()
                work.replace(out)
    finally:
        work.unlink(missing_ok=True)


@contextlib.contextmanager
def _delimited(path: Path, schema: pa.Schema, dialect: Dialect) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(dialect.line(schema.names))
        yield lambda rows: file.writelines(map(dialect.line, zip(*_columns(rows, schema, text_cells), strict=True)))


@contextlib.contextmanager
def _json_lines(path: Path, schema: pa.Schema) -> Iterator[Write]:
    keys = [json.dumps(name, ensure_ascii=False) for name in schema.names]

    def line(cells: tuple[str | None, ...]) -> str:
        fields = (f"{key}: {cell}" for key, cell in zip(keys, cells, strict=True) if cell is not None)
        return "{" + ", ".join(fields) + "}\n"

    with path.open("w", encoding="utf-8", newline="") as file:
        yield lambda rows: file.writelines(map(line, zip(*_columns(rows, schema, json_cells), strict=True)))


@contextlib.contextmanager
def _parquet(path: Path, schema: pa.Schema, json_types: Mapping[str, pa.DataType]) -> Iterator[Write]:
    from pyarrow.parquet import ParquetWriter

    types = [json_types[field.name] if field.type == JSON_CELL else field.type for field in schema]
    stored = [pa.large_string() if kind == JSON_CELL else kind for kind in types]
    written = pa.schema(list(zip(schema.names, stored, strict=True)), schema.metadata)
    with ParquetWriter(path, written) as file:

        def write(rows: pa.Table) -> None:
            columns = _columns(rows, schema, lambda column: column)
            arrays = [_typed(c, kind, held) for c, kind, held in zip(columns, types, stored, strict=True)]
            file.write_table(pa.table(arrays, schema=written))

        yield write


def _columns(rows: pa.Table, schema: pa.Schema, convert: Callable[[pa.ChunkedArray], Any]) -> list[Any]:
    """Convert each column of a schema.

    Raises:
        TableError: a column holds what the format cannot.
    """
    columns = rows.columns
    if rows.schema.names != schema.names:
        present = dict(zip(rows.schema.names, rows.columns, strict=True))
        lacking = {field.name: pa.chunked_array([pa.nulls(len(rows), field.type)]) for field in schema}
        columns = list((lacking | present).values())
    converted = []
    for name, column in zip(schema.names, columns, strict=True):
        try:
            converted.append(convert(column))
        except (pa.ArrowException, UnicodeError, TypeError, ValueError) as error:
            raise TableError(
                f"the column {name!r} ({column.type}) cannot be written as text ({' '.join(str(error).split())}); "
                "choose an `out` that ends in .parquet, or leave the column out"
            ) from None
    return converted


def text_cells(column: pa.ChunkedArray) -> list[str]:
    """Return each value as the text of a CSV cell."""
    if column.type == JSON_CELL:
        cells = (cell or "null" for cell in column.to_pylist())
        return [json.loads(cell) if cell[0] == '"' else "" if cell == "null" else cell for cell in cells]
    column = decode_dictionary(column)
    if pa.types.is_nested(column.type):
        return ["" if cell in (None, "null") else cell for cell in json_cells(column)]
    if pa.types.is_floating(column.type):  # Arrow would write 1.0 as 1
        return ["" if value is None else repr(value) for value in column.to_pylist()]
    return [value or "" for value in column.cast(pa.large_string()).to_pylist()]


def json_cells(column: pa.ChunkedArray) -> list[str | None]:
    """Return each value as JSON; None where the row lacks the column, as rows of JSON lines may."""
    if column.type == JSON_CELL:
        values: list[str | None] = column.to_pylist()
        return values
    column = decode_dictionary(column)
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.large_string())
    return [json.dumps(_json_value(value), ensure_ascii=False) for value in column.to_pylist()]


def _json_value(value: Any) -> Any:
    """Return a value of Arrow's as one that JSON can hold."""
    if isinstance(value, dict):
        return {str(name): _json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _typed(column: pa.ChunkedArray, kind: pa.DataType, stored: pa.DataType) -> pa.ChunkedArray:
    """Return a column in the type that Parquet stores; ``kind`` is `JSON_CELL` where that is a string of JSON."""
    if column.type != JSON_CELL:
        return column if column.type == stored else column.cast(stored)
    cells = (None if cell == "null" else cell for cell in column.to_pylist())
    values = [cell if cell is None or kind == JSON_CELL else json.loads(cell) for cell in cells]
    return pa.chunked_array([pa.array(values, stored)])
