"""The formats of table files: how a name tells the format, and which function reads it, in batches of rows."""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from ...cache.documents import is_lfs_pointer
from ...cache.errors import SettingsError, StorageError, TableError
from ..settings import TableSettings
from .columns import ColumnNames
from .delimited import CSV, TEXT, TSV, read_delimited
from .json_lines import read_json_lines
from .text_files import BATCH_ROWS, COMPRESSIONS, Reading


class Format(enum.StrEnum):
    """The format of a table file."""

    CSV = "csv"
    """Comma-separated cells, the first row a header."""
    TSV = "tsv"
    """Tab-separated cells, the first row a header; quotation marks as in CSV if all of them stand as in CSV."""
    TEXT = "txt"
    """One text a line, without a header; with a delimiter, a table like TSV."""
    JSON_LINES = "jsonl"
    """One JSON object a line."""
    PARQUET = "parquet"
    """Apache Parquet."""
    ARROW = "arrow"
    """Arrow's IPC format, which is Feather's too: a file or a stream."""
    EXCEL = "xlsx"
    """A workbook of Excel, of which one sheet is read."""


SUFFIXES = {
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".txt": Format.TEXT,
    ".jsonl": Format.JSON_LINES,
    ".ndjson": Format.JSON_LINES,
    ".json": Format.JSON_LINES,
    ".parquet": Format.PARQUET,
    ".arrow": Format.ARROW,
    ".feather": Format.ARROW,
    ".xlsx": Format.EXCEL,
}
DIALECTS = {Format.CSV: CSV, Format.TSV: TSV, Format.TEXT: TEXT}


def file_format(path: Path) -> Format | None:
    """Return the format that a file's name tells; None where it tells none."""
    suffixes = [suffix.lower() for suffix in path.suffixes] or [""]
    if suffixes[-1] not in COMPRESSIONS:
        return SUFFIXES.get(suffixes[-1])
    inner = SUFFIXES.get("".join(suffixes[-2:-1]))
    return None if inner in (Format.ARROW, Format.EXCEL) else inner


def table_name(path: str | os.PathLike[str]) -> str:
    """Return a table's name without the suffixes of its format: ``reviews.2024`` of ``reviews.2024.csv.gz``.

    A link to a table has its own name.
    """
    name = Path(os.path.abspath(path))  # noqa: PTH100 - which follows no links, as `resolve` does
    while name.suffix.lower() in {*SUFFIXES, *COMPRESSIONS}:
        name = name.with_suffix("")
    return name.name


def require_settings(settings: TableSettings, kinds: set[Format | None], source: str) -> None:
    """Refuse settings that have no effect on a table.

    Args:
        settings: The settings.
        kinds: The formats of the table's files; empty for a table in memory.
        source: The table's name in a message.

    Raises:
        SettingsError: one has no effect.
    """
    used = {"encoding"} if kinds & {Format.JSON_LINES} else set()
    used = {"encoding", "delimiter", "quotes", "header"} if kinds & set(DIALECTS) else used
    if kinds == {Format.TEXT} and settings.delimiter is None:
        used.remove("quotes")
    if kinds == {Format.EXCEL}:
        used.add("sheet")
    for name in ("delimiter", "quotes", "encoding", "header", "sheet"):
        if getattr(settings, name) is not None and name not in used:
            raise SettingsError(f"`{name}` has no effect on {source}; leave it out")


def read_file(reading: Reading, columns: ColumnNames) -> Iterator[pa.RecordBatch]:
    """Read a file in batches of rows.

    Args:
        reading: A file whose format `file_format` knows.
        columns: The columns to read.

    Raises:
        TableError: a column is missing, or a row cannot be parsed. Other errors are those that `readable` translates.
    """
    file, kind = reading.file, file_format(reading.file)
    if file.stat().st_size == 0:
        raise TableError(f"{file} is empty")
    if is_lfs_pointer(file):
        raise TableError(f"{file} is a Git LFS pointer, which names the table and is not it; run git lfs pull")
    if kind is Format.PARQUET:
        yield from _read_parquet(file, columns)
    elif kind is Format.ARROW:
        yield from _read_arrow(file, columns)
    elif kind is Format.EXCEL:
        from .excel import read_excel

        yield from read_excel(reading, columns)
    elif kind is Format.JSON_LINES:
        yield from read_json_lines(reading, columns)
    elif kind is not None:
        dialect = TSV if kind is Format.TEXT and reading.settings.delimiter else DIALECTS[kind]
        yield from read_delimited(reading, dialect.chosen(reading.settings), columns)


def _read_parquet(file: Path, columns: ColumnNames) -> Iterator[pa.RecordBatch]:
    from pyarrow.parquet import ParquetFile  # which takes as long to load as a small table to read

    if file.suffix.lower() in COMPRESSIONS:  # pandas' documentation has df.parquet.gzip, whose pages are compressed
        with file.open("rb") as opened:
            if opened.read(4) != b"PAR1":
                raise TableError(f"{file} is compressed as a whole; Parquet compresses its own pages: unpack the file")
    with ParquetFile(file) as parquet:
        columns.require(parquet.schema_arrow.names, str(file))
        yield from parquet.iter_batches(BATCH_ROWS, columns=None if columns.keep_others else columns.names())


def _read_arrow(file: Path, columns: ColumnNames) -> Iterator[pa.RecordBatch]:
    """Read a file of Arrow's IPC format, or a stream that was written to a file."""
    with pa.OSFile(str(file)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if not is_file:
            for batch in (stream := pa.ipc.open_stream(source)):
                columns.require(stream.schema.names, str(file))
                yield batch
            return
        with pa.ipc.open_file(source) as batches:
            columns.require(batches.schema.names, str(file))
            for number in range(batches.num_record_batches):
                yield batches.get_batch(number)


@contextlib.contextmanager
def readable(reading: Reading) -> Iterator[None]:
    """Translate what Arrow and the system raise while a file is read.

    Raises:
        TableError: the file is not what its name says, or a row cannot be read.
        StorageError: the system cannot read the file.
    """
    file = reading.file
    try:
        yield
    except UnicodeError as error:
        encoding = (reading.settings.encoding or "utf-8").upper()
        kind = file_format(file)
        advice = "; write it anew" if kind in (Format.PARQUET, Format.ARROW) else reading.encoding_advice()
        raise TableError(f"{file} is not {encoding}: {error}{advice}") from None
    except OverflowError:
        raise TableError(f"{file}: a label is a number of more than 64 bits; write it as text") from None
    except pa.ArrowException as error:
        raise TableError(f"{file}: {' '.join(str(error).split())}") from None
    except OSError as error:
        if error.errno is None:  # Arrow's own, about the content: it does not unpack, or ends too early
            raise TableError(f"{file} is damaged, or not what its name says: {error}") from None
        raise StorageError(f"cannot read {file}: {error.strerror or error}") from None
