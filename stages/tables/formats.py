"""The formats of table files: how a name tells the format, and which function reads it, in batches of rows."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from ...cache.errors import StorageError, TableError
from .columns import ColumnNames
from .delimited import CSV, TSV, read_delimited
from .json_lines import read_json_cells, read_json_lines, require_json_lines
from .text_files import require_no_utf16

BATCH_ROWS = 8192


class Format(enum.StrEnum):
    """The format of a table file."""

    CSV = "csv"
    """Comma-separated cells, the first row a header."""
    TSV = "tsv"
    """Tab-separated cells, the first row a header; quotation marks as in CSV."""
    JSON_LINES = "jsonl"
    """One JSON object a line."""
    PARQUET = "parquet"
    """Apache Parquet."""


SUFFIXES = {
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".jsonl": Format.JSON_LINES,
    ".ndjson": Format.JSON_LINES,
    ".json": Format.JSON_LINES,
    ".parquet": Format.PARQUET,
}
COMPRESSIONS = {".gz", ".bz2", ".zst", ".lz4", ".br"}
DIALECTS = {Format.CSV: CSV, Format.TSV: TSV}


def file_format(path: Path) -> Format | None:
    """Return the format that a file's name tells; None where it tells none."""
    suffixes = [suffix.lower() for suffix in path.suffixes] or [""]
    if suffixes[-1] not in COMPRESSIONS:
        return SUFFIXES.get(suffixes[-1])
    inner = SUFFIXES.get("".join(suffixes[-2:-1]))
    return None if inner is Format.PARQUET else inner  # Parquet compresses its own pages


def table_name(path: str | Path) -> str:
    """Return a table's name without the suffixes of its format: ``reviews.2024`` of ``reviews.2024.csv.gz``."""
    name = Path(path).resolve()
    while name.suffix.lower() in {*SUFFIXES, *COMPRESSIONS}:
        name = name.with_suffix("")
    return name.name


def read_file(
    file: Path, columns: ColumnNames, *, ragged: set[int], skip_bad_rows: bool | None
) -> Iterator[pa.RecordBatch]:
    """Read a file in batches of rows.

    Args:
        file: A file whose format `file_format` knows.
        columns: The columns to read.
        ragged: Receives the number of each row that has too many or too few cells. No batch holds these rows.
        skip_bad_rows: Leave these rows out, instead of raising. None: raise, without the advice to skip them.

    Raises:
        TableError: a column is missing, or a row cannot be parsed. Other errors are those that `readable` translates.
    """
    kind = file_format(file)
    if file.stat().st_size == 0:
        raise TableError(f"{file} is empty")
    if kind is Format.PARQUET:
        yield from _read_parquet(file, columns)
        return
    require_no_utf16(file)
    if kind is Format.JSON_LINES:
        yield from read_json_cells(file, columns, BATCH_ROWS) if columns.keep_others else read_json_lines(file, columns)
    elif kind is not None:
        yield from read_delimited(file, DIALECTS[kind], columns, ragged=ragged, skip_bad_rows=skip_bad_rows)


def _read_parquet(file: Path, columns: ColumnNames) -> Iterator[pa.RecordBatch]:
    from pyarrow.parquet import ParquetFile  # which takes as long to load as a small table to read

    with ParquetFile(file) as parquet:
        columns.require(parquet.schema_arrow.names, str(file))
        yield from parquet.iter_batches(BATCH_ROWS, columns=None if columns.keep_others else columns.names())


@contextlib.contextmanager
def readable(file: Path, columns: ColumnNames) -> Iterator[None]:
    """Translate what Arrow and the system raise while a file is read.

    Raises:
        TableError: the file is not what its name says, or a row cannot be read.
        StorageError: the system cannot read the file.
    """
    try:
        yield
    except UnicodeError as error:
        raise TableError(f"{file} is not UTF-8, or its name is not: {error}; convert it, e.g. with iconv") from None
    except OverflowError:
        raise TableError(f"{file}: a label is a number of more than 64 bits; write it as text") from None
    except pa.ArrowException as error:
        if file_format(file) is Format.JSON_LINES:
            require_json_lines(file, columns)
        reason = " ".join(str(error).split())
        if "Empty CSV file" in reason:
            raise TableError(f"{file} has no header: its lines are blank, or it is no text") from None
        raise TableError(f"{file}: {reason}") from None
    except OSError as error:
        if error.errno is None:  # Arrow's own, about the content: it does not unpack, or ends too early
            raise TableError(f"{file} is damaged, or not what its name says: {error}") from None
        raise StorageError(f"cannot read {file}: {error.strerror or error}") from None
