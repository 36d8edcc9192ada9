"""Writing a table, whatever it was read from, to a file of any format: batch by batch, in memory that does not grow."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from ...cache.errors import OutputExistsError, TableError, storage_errors
from ...cache.siblings import followed
from ...cache.workspace import replace_file, sync_file, workspace
from .columns import decode_dictionary
from .delimited import Dialect
from .formats import DIALECTS, Format, file_format
from .json_lines import JSON_CELL
from .text_files import COMPRESSIONS

Write = Callable[[pa.Table], None]
_JSON_WORDS = {"null": "", "true": "True", "false": "False"}
_Cell = TypeVar("_Cell", str, str | None)


def output_format(out: Path) -> Format:
    """Return the format in which a file is written, by its name.

    Raises:
        OutputExistsError: no format is written under such a name.
    """
    kind = file_format(out)
    if kind in (None, Format.TEXT, Format.ARROW, Format.EXCEL) or out.suffix.lower() in COMPRESSIONS:
        raise OutputExistsError(f"{out} must end in .csv, .tsv, .jsonl or .parquet")
    return kind


@contextlib.contextmanager
def open_writer(
    out: Path, schema: pa.Schema, json_types: Mapping[str, pa.DataType], *, overwrite: bool = False
) -> Iterator[Write]:
    """Write rows to a work file, which takes the output's name at the end of the block. After an error it is removed.

    In CSV and TSV, a value is written as text (a boolean as True or False), a null as an empty cell, a list or a struct
    as JSON. In JSON lines, a date or a time is text, and a float that is not finite is null. In Parquet, a column keeps
    its type.

    Args:
        out: The file to write.
        schema: All columns. Rows may lack some of them, which are null there.
        json_types: The types in which Parquet holds columns of JSON cells.
        overwrite: Replace a file of this name.

    Yields:
        A function that writes some rows.

    Raises:
        OutputExistsError: a file of this name has appeared, or something else stands where the work file belongs.
        TableError: the format cannot hold a column.
        StorageError: the file cannot be written.
    """
    kind = output_format(out)
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None and kind not in DIALECTS:
        raise TableError(f"the table has two columns {twice!r}, which {out.suffix} cannot hold; rename one of them")
    with workspace(out) as work, contextlib.ExitStack() as stack:
        new = work / "new"
        if kind is Format.PARQUET:
            file = _parquet(new, schema, json_types)
        else:
            file = _json_lines(new, schema) if kind is Format.JSON_LINES else _delimited(new, schema, DIALECTS[kind])
        with _writing(out):
            write = stack.enter_context(file)

        def write_rows(rows: pa.Table) -> None:
            with _writing(out):
                write(rows)

        yield write_rows
        with _writing(out):
            stack.close()
            sync_file(new)
            if not overwrite and os.path.lexists(followed(out)):
                raise OutputExistsError(f"{out} has appeared meanwhile; choose another `out`, or pass `overwrite=True`")
            replace_file(new, out)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Translate what Arrow and the system raise while a file is written."""
    try:
        with storage_errors(f"cannot write {out}"):
            yield
    except pa.ArrowException as error:
        raise TableError(
            f"{out}: {out.suffix} cannot hold the table's columns: {' '.join(str(error).split())}"
        ) from None


@contextlib.contextmanager
def _delimited(path: Path, schema: pa.Schema, dialect: Dialect) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(dialect.line(schema.names))
        yield lambda rows: file.writelines(map(dialect.line, _rows(rows, schema, text_cells)))


@contextlib.contextmanager
def _json_lines(path: Path, schema: pa.Schema) -> Iterator[Write]:
    keys = [json.dumps(name, ensure_ascii=False) for name in schema.names]

    def line(cells: tuple[str | None, ...]) -> str:
        fields = (f"{key}: {cell}" for key, cell in zip(keys, cells, strict=True) if cell is not None)
        return "{" + ", ".join(fields) + "}\n"

    with path.open("w", encoding="utf-8", newline="") as file:
        yield lambda rows: file.writelines(map(line, _rows(rows, schema, json_cells)))


@contextlib.contextmanager
def _parquet(path: Path, schema: pa.Schema, json_types: Mapping[str, pa.DataType]) -> Iterator[Write]:
    from pyarrow.parquet import ParquetWriter

    types = [json_types[field.name] if field.type == JSON_CELL else field.type for field in schema]
    stored = [_stored_type(kind) for kind in types]
    written = pa.schema(list(zip(schema.names, stored, strict=True)), schema.metadata)
    with ParquetWriter(path, written) as file:

        def write(rows: pa.Table) -> None:
            columns = zip(_columns(rows, schema), types, stored, strict=True)
            file.write_table(pa.table([_typed(*column) for column in columns], schema=written))

        yield write


def _columns(rows: pa.Table, schema: pa.Schema) -> list[pa.ChunkedArray]:
    """Return a column for each field of a schema; a column that the rows lack is null."""
    if rows.schema.names == schema.names:  # two of them may have one name
        columns: list[pa.ChunkedArray] = rows.columns
        return columns
    present = dict(zip(rows.schema.names, rows.columns, strict=True))
    lacking = {field.name: pa.chunked_array([pa.nulls(len(rows), field.type)]) for field in schema}
    return list((lacking | present).values())


def _rows(
    rows: pa.Table, schema: pa.Schema, cells_of: Callable[[pa.Array], list[_Cell]]
) -> Iterator[tuple[_Cell, ...]]:
    """Yield each row's cells.

    Raises:
        TableError: a column holds what cannot be a cell.
    """
    columns = []
    for name, column in zip(schema.names, _columns(rows, schema), strict=True):
        try:
            columns.append([cell for chunk in column.chunks for cell in cells_of(chunk)])
        except (pa.ArrowException, UnicodeError, TypeError, ValueError) as error:
            raise TableError(
                f"the column {name!r} ({column.type}) cannot be written as text ({' '.join(str(error).split())}); "
                "choose an `out` that ends in .parquet, or leave the column out"
            ) from None
    return zip(*columns, strict=True)


def text_cells(column: pa.Array) -> list[str]:
    """Return each value as the text of a CSV cell."""
    if column.type == JSON_CELL:
        cells = (cell or "null" for cell in column.to_pylist())
        return [json.loads(cell) if cell[0] == '"' else _JSON_WORDS.get(cell, cell) for cell in cells]
    column = decode_dictionary(column)
    if pa.types.is_boolean(column.type):  # as a label is read, see `read_labels`
        return ["" if value is None else str(value) for value in column.to_pylist()]
    if pa.types.is_nested(column.type):
        return ["" if cell in (None, "null") else cell for cell in json_cells(column)]
    if pa.types.is_floating(column.type):  # Arrow would write 1.0 as 1
        return ["" if value is None else repr(value) for value in column.to_pylist()]
    return [value or "" for value in column.cast(pa.large_string()).to_pylist()]


def json_cells(column: pa.Array) -> list[str | None]:
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


def _stored_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which Parquet stores a column."""
    if kind == JSON_CELL or pa.types.is_string_view(kind):  # Arrow 20 writes no views
        return pa.large_string()
    if pa.types.is_dictionary(kind) and pa.types.is_string_view(kind.value_type):  # polars' categories
        return pa.dictionary(kind.index_type, pa.large_string(), kind.ordered)
    return kind


def _typed(column: pa.ChunkedArray, kind: pa.DataType, stored: pa.DataType) -> pa.ChunkedArray:
    """Return a column in the type that Parquet stores; ``kind`` is `JSON_CELL` where that is a string of JSON."""
    if column.type == stored:
        return column
    if pa.types.is_dictionary(column.type) and pa.types.is_dictionary(stored):
        parts = ((c.indices.cast(stored.index_type), c.dictionary.cast(stored.value_type)) for c in column.chunks)
        return pa.chunked_array([pa.DictionaryArray.from_arrays(*p, ordered=stored.ordered) for p in parts], stored)
    if column.type != JSON_CELL:
        return column.cast(stored)
    cells = (None if cell == "null" else cell for cell in column.to_pylist())
    values = [cell if cell is None or kind == JSON_CELL else json.loads(cell) for cell in cells]
    return pa.chunked_array([pa.array(values, stored)])
