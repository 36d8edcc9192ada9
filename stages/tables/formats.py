"""Files of tables, read into Arrow's batches of rows; what is wrong with a file is said with its row or its line."""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from ...cache.documents import is_text
from ...cache.errors import StorageError, TableError
from .columns import ColumnNames

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
COMPRESSIONS = {".gz", ".bz2", ".zst", ".lz4", ".br"}
BATCH_ROWS = 8192
_BLOCK_BYTES = (1 << 18, 1 << 24, 1 << 28)
"""A row of text must fit in a block. Arrow holds many blocks of a CSV file in memory, so small ones are tried first,
and larger ones where a row turns out to be longer."""
_JSON_BLOCK_BYTES = _BLOCK_BYTES[1:]
_PEEK_LINES = 1000
"""Lines of a JSON table that are looked at for the names and kinds of its columns."""


def file_format(path: Path) -> str | None:
    """Tell a table's format by its name, or None."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
        return None if suffixes and FORMATS.get(suffixes[-1]) == "parquet" else FORMATS.get("".join(suffixes[-1:]))
    return FORMATS.get("".join(suffixes[-1:]))


def table_name(path: str | Path) -> str:
    """A table's name without what says of which kind it is: ``reviews.2024`` of ``reviews.2024.csv.gz``."""
    name = Path(path).resolve()
    while name.suffix.lower() in {*FORMATS, *COMPRESSIONS}:
        name = name.with_suffix("")
    return name.name


def read_file(file: Path, columns: ColumnNames, *, ragged: set[int], skip_ragged: bool) -> Iterator[pa.RecordBatch]:
    """Read a file's columns.

    Args:
        file: Of a kind that `file_format` knows.
        columns: Which.
        ragged: Numbers of rows that have too many or too few cells are added to this; they are in no batch.
        skip_ragged: Leave them out, instead of raising.

    Raises:
        TableError: a column is missing, or a row cannot be parsed. What Arrow raises of itself is let through: see
            `readable`.
    """
    kind = file_format(file)
    if file.stat().st_size == 0:
        raise TableError(f"{file} is empty")
    if kind == "parquet":
        from pyarrow.parquet import ParquetFile  # which takes as long to load as a small table to read

        with ParquetFile(file) as parquet:
            columns.require(parquet.schema_arrow.names, str(file))
            yield from parquet.iter_batches(BATCH_ROWS, columns=columns.names())
        return
    _require_no_utf16(file)
    if kind == "jsonl":
        yield from _read_json_lines(file, columns)
    else:
        yield from _read_delimited(file, columns, "\t" if kind == "tsv" else ",", ragged, skip_ragged)


@contextlib.contextmanager
def readable(file: Path, columns: ColumnNames) -> Iterator[None]:
    """Turn what Arrow raises while a file is read into one line of ours.

    Raises:
        TableError: the file is not what its name says, or holds what cannot be read.
        StorageError: the system could not read it.
    """
    try:
        yield
    except UnicodeError as error:
        raise TableError(f"{file} is not UTF-8, or its name is not: {error}; convert it, e.g. with iconv") from None
    except OverflowError:
        raise TableError(f"{file}: a label is a number of more than 64 bits; write it as text") from None
    except pa.ArrowException as error:
        raise TableError(_explain(file, columns, error)) from None
    except OSError as error:
        if error.errno is None:  # Arrow's, of what it read: it does not unpack, or does not end
            raise TableError(f"{file} is damaged, or not what its name says: {error}") from None
        raise StorageError(f"cannot read {file}: {error.strerror or error}") from None


def _require_no_utf16(file: Path) -> None:
    with pa.input_stream(str(file)) as stream:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise TableError(f"{file} is UTF-16, and must be UTF-8; convert it, e.g. with iconv -f UTF-16 -t UTF-8")


def _in_blocks(
    read: Callable[[int], Iterator[pa.RecordBatch]], sizes: Sequence[int], file: Path
) -> Iterator[pa.RecordBatch]:
    """Read in blocks of the first of these sizes, and go on with the next where a row is longer than a block."""
    done = 0
    for size in sizes:
        skip = done
        try:
            for batch in read(size):
                skipped = min(skip, len(batch))
                skip -= skipped
                yield batch.slice(skipped)
                done += len(batch) - skipped
            return
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
    raise TableError(
        f"{file}, after row {done:,}: a row is longer than {sizes[-1]:,} bytes; is a quotation mark left open?"
    )


def _read_json_lines(file: Path, columns: ColumnNames) -> Iterator[pa.RecordBatch]:
    parsing = pa.json.ParseOptions(explicit_schema=_json_schema(file, columns), unexpected_field_behavior="ignore")

    def read(block_bytes: int) -> Iterator[pa.RecordBatch]:
        with pa.input_stream(str(file)) as stream:
            yield from pa.json.open_json(stream, pa.json.ReadOptions(block_size=block_bytes), parsing)

    yield from _in_blocks(read, _JSON_BLOCK_BYTES, file)


def _json_schema(file: Path, columns: ColumnNames) -> pa.Schema:
    """The columns that are wanted, typed by the first lines: Arrow would type, and check, all the others too."""
    names: dict[str, None] = {}
    label: object = None
    for _, line in itertools.islice(_lines(file), _PEEK_LINES):
        with contextlib.suppress(ValueError, RecursionError):  # Arrow will say so, with its place
            row = json.loads(line)
            names |= dict.fromkeys(row if isinstance(row, dict) else ())
            label = row.get(columns.label) if isinstance(row, dict) and label is None else label
    if names:
        columns.require(list(names), str(file))
    types = {column: pa.string() for column in (columns.text, columns.pair) if column is not None}
    if columns.label is not None:
        types[columns.label] = pa.string() if label is None else pa.array([label]).type
    return pa.schema(list(types.items()))


def _read_delimited(
    file: Path, columns: ColumnNames, delimiter: str, ragged: set[int], skip_ragged: bool
) -> Iterator[pa.RecordBatch]:
    problem = ""

    def on_invalid(row: pa.csv.InvalidRow) -> str:
        nonlocal problem
        number = row.number - 1  # Arrow counts the header
        ragged.add(number)
        cells, mark = "cells" if row.actual_columns > 1 else "cell", "comma" if delimiter == "," else "tab"
        problem = (
            f"{file}, row {number:,}: it has {row.actual_columns} {cells} where the header has {row.expected_columns}; "
            f"put a text that holds a {mark} in quotation marks and close them, or use `skip_bad_rows=True`"
        )
        return "skip" if skip_ragged else "error"

    parsing = pa.csv.ParseOptions(
        delimiter=delimiter,
        newlines_in_values=True,
        invalid_row_handler=on_invalid,
        # Where there is one column alone, a blank line is a row of it, which is to be said and not dropped.
        ignore_empty_lines=len(columns.names()) > 1 or not _has_one_column(file, delimiter),
    )
    # Bytes, not strings: Arrow would refuse a whole block for one bad byte, without saying where it is.
    conversion = pa.csv.ConvertOptions(
        column_types={name: pa.binary() for name in columns.names()},
        include_columns=columns.names(),
        strings_can_be_null=False,
    )

    def read(block_bytes: int) -> Iterator[pa.RecordBatch]:
        reading = pa.csv.ReadOptions(use_threads=False, block_size=block_bytes)
        try:
            with pa.csv.open_csv(file, reading, parsing) as header:
                columns.require(header.schema.names, str(file))
            with pa.csv.open_csv(file, reading, parsing, conversion) as reader:
                yield from reader
        except pa.ArrowInvalid:
            if problem and not skip_ragged:
                raise TableError(problem) from None
            raise

    yield from _in_blocks(read, _BLOCK_BYTES, file)


def _has_one_column(file: Path, delimiter: str) -> bool:
    _, header = next(_lines(file), (0, ""))
    return delimiter not in header


def _explain(file: Path, columns: ColumnNames, error: Exception) -> str:
    """One line on why Arrow could not read a file, with the line where that can be told."""
    # Arrow counts a JSON table's rows from the start of its block, so its lines are looked at again.
    if file_format(file) == "jsonl" and (problem := _json_problem(file, columns)):
        return problem
    reason = " ".join(str(error).split())
    if "Empty CSV file" in reason:
        return f"{file} has no header: its lines are blank, or it is no text"
    return f"{file}: {reason}"


def _json_problem(file: Path, columns: ColumnNames) -> str | None:
    """The first line of a JSON table that is not as it should be, and why."""
    kinds = {column: "text" for column in (columns.text, columns.pair) if column is not None}
    for number, line in _lines(file):
        where = f"{file}, line {number:,}"
        try:
            row = json.loads(line)
        except RecursionError:
            return f"{where}: it is nested too deep"
        except ValueError as error:
            return f"{where}: not JSON ({error}); it must hold one object a line"
        if not isinstance(row, dict):
            return f"{where}: not a JSON object"
        for column in columns.names():
            value = row.get(column)
            if isinstance(value, str) and not is_text(value):
                return f"{where}: {column!r} holds half of a surrogate pair, which is no character; mend it"
            if value is not None and (kind := _kind(value)) != kinds.setdefault(column, kind):
                return f"{where}: {column!r} holds {kind}, where {kinds[column]} is expected"
    return None


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, bool):
        return "a truth value"
    names = {str: "text", int: "a whole number", float: "a number with a fraction", list: "a list", dict: "an object"}
    return names[type(value)]


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number from 1."""
    with pa.input_stream(str(file)) as stream, io.TextIOWrapper(stream, "utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line
