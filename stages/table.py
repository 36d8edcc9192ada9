"""Tables of texts, read a batch at a time: CSV, TSV, JSON lines, Parquet, a folder of them, or arrays in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from ..cache.errors import SettingsError, StorageError, TableError
from .columns import bad_rows, read_labels, read_texts

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
COMPRESSIONS = {".gz", ".bz2", ".zst", ".lz4", ".br"}
_BLOCK_BYTES = (1 << 18, 1 << 24)
"""A CSV row must fit in a block. Arrow holds many blocks in memory, so small ones are tried first, and large ones where
a row turns out to be longer."""
_BATCH_ROWS = 8192
_PEEK_LINES = 1000
"""Lines of a JSON table that are looked at for the names and kinds of its columns."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some consecutive good rows of a table."""

    texts: list[str]
    pairs: list[str] | None
    """The second text of each row, where there are two."""
    labels: list[str] | None
    files: list[str]
    """The file that each row stands in."""
    numbers: list[int]
    """Each row's number in that file, from 1, a header not counted."""
    skipped: int
    """Bad rows left out among them."""

    def place(self, index: int) -> str:
        """Where a row stands, for a message."""
        return f"{self.files[index]}, row {self.numbers[index]:,}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table that can be read again and again, the same each time.

    Attributes:
        source: What to call it in a message.
        files: The files, in reading order; empty for a table in memory.
        memory: The table in memory, or None.
        text_column: Column of the texts.
        pair_column: Column of the second texts, or None.
        label_column: Column of the labels, or None.
        skip_bad_rows: Leave out rows without text or label instead of raising.
    """

    source: str
    files: tuple[Path, ...]
    memory: pa.Table | None
    text_column: str
    pair_column: str | None
    label_column: str | None
    skip_bad_rows: bool

    def batches(self) -> Iterator[Rows]:
        """Read the rows in order.

        Raises:
            TableError: a file cannot be parsed, a column is missing or of the wrong kind, or a row is bad.
            StorageError: a file cannot be read.
        """
        if self.memory is not None:
            try:
                yield from self._good_rows(self.memory.to_batches(_BATCH_ROWS), self.source, set())
            except UnicodeError as error:
                raise TableError(f"{self.source}: a text or a label is not UTF-8: {error}") from None
        for file in self.files:
            ragged: set[int] = set()
            try:
                yield from self._good_rows(self._read(file, ragged), str(file), ragged)
            except UnicodeError as error:
                raise TableError(
                    f"{file} is not UTF-8, or its name is not: {error}; convert it, e.g. with iconv"
                ) from None
            except OverflowError:
                raise TableError(f"{file}: a label is a number of more than 64 bits; write it as text") from None
            except pa.ArrowException as error:
                raise TableError(_explain(file, error)) from None
            except OSError as error:
                raise StorageError(f"cannot read {file}: {error.strerror or error}") from None

    def state(self) -> tuple[tuple[int, int, int], ...]:
        """What the file system says of the files: it changes when they do."""
        try:
            stats = [file.stat() for file in self.files]
        except OSError as error:
            raise StorageError(f"cannot read {error.filename}: {error.strerror}") from None
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)

    def _columns(self) -> list[str]:
        return [c for c in (self.text_column, self.pair_column, self.label_column) if c is not None]

    def _read(self, file: Path, ragged: set[int]) -> Iterator[pa.RecordBatch]:
        """Read a file's batches; numbers of rows that have too many or too few cells are added to ``ragged``."""
        kind = file_format(file)
        if file.stat().st_size == 0:
            raise TableError(f"{file} is empty")
        if kind == "parquet":
            with pa.parquet.ParquetFile(file) as parquet:
                self._require_columns(parquet.schema_arrow.names, str(file))
                yield from parquet.iter_batches(_BATCH_ROWS, columns=self._columns())
        elif kind == "jsonl":
            yield from self._read_json_lines(file)
        else:
            yield from self._read_delimited(file, "\t" if kind == "tsv" else ",", ragged)

    def _read_json_lines(self, file: Path) -> Iterator[pa.RecordBatch]:
        schema = self._json_schema(file)
        with pa.input_stream(str(file)) as stream:
            yield from pa.json.open_json(
                stream,
                pa.json.ReadOptions(block_size=_BLOCK_BYTES[-1]),
                pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )

    def _json_schema(self, file: Path) -> pa.Schema:
        """The columns that are wanted, typed by the first lines: Arrow would type, and check, all the others too."""
        names: dict[str, None] = {}
        label: object = None
        with pa.input_stream(str(file)) as stream, io.TextIOWrapper(stream, "utf-8", errors="replace") as lines:
            for line in itertools.islice(lines, _PEEK_LINES):
                with contextlib.suppress(ValueError, RecursionError):  # Arrow will say so, with its place
                    row = json.loads(line)
                    names |= dict.fromkeys(row if isinstance(row, dict) else ())
                    label = row.get(self.label_column) if isinstance(row, dict) and label is None else label
        if names:
            self._require_columns(list(names), str(file))
        types = {column: pa.string() for column in (self.text_column, self.pair_column) if column is not None}
        if self.label_column is not None:
            types[self.label_column] = pa.string() if label is None else pa.array([label]).type
        return pa.schema(list(types.items()))

    def _read_delimited(self, file: Path, delimiter: str, ragged: set[int]) -> Iterator[pa.RecordBatch]:
        def on_invalid(row: pa.csv.InvalidRow) -> str:
            ragged.add(row.number - 1)  # Arrow counts the header
            return "skip" if self.skip_bad_rows else "error"

        options = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_invalid)
        # Bytes, not strings: Arrow would refuse a whole block for one bad byte, without saying where it is.
        conversion = pa.csv.ConvertOptions(
            column_types={name: pa.binary() for name in self._columns()},
            include_columns=self._columns(),
            strings_can_be_null=False,
        )
        done = 0
        for block_bytes in _BLOCK_BYTES:
            reading = pa.csv.ReadOptions(use_threads=False, block_size=block_bytes)
            skip = done
            try:
                with pa.csv.open_csv(file, reading, options) as header:
                    self._require_columns(header.schema.names, str(file))
                with pa.csv.open_csv(file, reading, options, conversion) as reader:
                    for batch in reader:
                        skipped = min(skip, len(batch))
                        skip -= skipped
                        yield batch.slice(skipped)
                        done += len(batch) - skipped
                    return
            except pa.ArrowInvalid as error:
                if "straddling" not in str(error) or block_bytes == _BLOCK_BYTES[-1]:
                    raise

    def _good_rows(
        self, batches: Iterator[pa.RecordBatch] | Sequence[pa.RecordBatch], where: str, ragged: set[int]
    ) -> Iterator[Rows]:
        """Check each row. Rows in ``ragged`` are in no batch: the numbers of those that are leave them out."""
        last = 0
        # A block of a CSV file is one batch, of more rows than should be Python strings at once.
        for batch in (b.slice(at, _BATCH_ROWS) for b in batches for at in range(0, max(len(b), 1), _BATCH_ROWS)):
            self._require_columns(batch.schema.names, where)
            numbers = list(itertools.islice((n for n in itertools.count(last + 1) if n not in ragged), len(batch)))
            texts = read_texts(batch.column(self.text_column), self.text_column, where, numbers)
            pairs = labels = None
            if self.pair_column is not None:
                pairs = read_texts(batch.column(self.pair_column), self.pair_column, where, numbers)
            if self.label_column is not None:
                labels = read_labels(batch.column(self.label_column), self.label_column, where, numbers)
            bad = bad_rows({self.text_column: texts, self.pair_column: pairs}, self.label_column, labels)
            if bad and not self.skip_bad_rows:
                index = min(bad)
                raise TableError(f"{where}, row {numbers[index]:,}: {bad[index]}; mend it, or use --skip-bad-rows")
            good = [i for i in range(len(texts)) if i not in bad]
            before, last = last, numbers[-1] if numbers else last
            yield Rows(
                texts=[texts[i] or "" for i in good],
                pairs=None if pairs is None else [pairs[i] or "" for i in good],
                labels=None if labels is None else [labels[i] or "" for i in good],
                files=[where] * len(good),
                numbers=[numbers[i] for i in good],
                skipped=len(bad) + sum(before < number < last for number in ragged),
            )
        if trailing := sum(number > last for number in ragged):
            yield Rows(texts=[], pairs=None, labels=None, files=[], numbers=[], skipped=trailing)

    def _require_columns(self, names: Sequence[str], where: str) -> None:
        options = ("--text-column", "--text-pair-column", "--label-column")
        for column, option in zip((self.text_column, self.pair_column, self.label_column), options, strict=True):
            if column is not None and list(names).count(column) != 1:
                problem = "has two columns" if column in names else "has no column"
                without = " (or --no-labels)" if option == "--label-column" else ""
                found = ", ".join(map(repr, names))
                raise TableError(f"{where} {problem} {column!r}; it has {found}: choose with {option}{without}")


def open_table(
    table: Any,
    *,
    labels: Sequence[str | int] | None = None,
    text_column: str,
    pair_column: str | None = None,
    label_column: str | None,
    skip_bad_rows: bool,
) -> Table:
    """Find out what kind of table this is, without reading it.

    Args:
        table: A file or folder; or in memory a sequence of texts, a mapping of columns, an Arrow table, or a
            DataFrame of any library that speaks Arrow.
        labels: One label per text, where ``table`` is a sequence of texts.
        text_column: Column of the texts.
        pair_column: Column of the second texts, or None.
        label_column: Column of the labels, or None.
        skip_bad_rows: Leave out rows without text or label instead of raising.

    Raises:
        TableError: there is no such file, its kind is unknown, or a folder mixes kinds.
    """
    named = [column for column in (text_column, pair_column, label_column) if column is not None]
    if len(set(named)) < len(named):
        twice = next(column for column in named if named.count(column) > 1)
        raise SettingsError(f"the column {twice!r} is named for two things (texts, second texts, labels); name others")
    options: dict[str, Any] = {
        "text_column": text_column,
        "pair_column": pair_column,
        "skip_bad_rows": skip_bad_rows,
    }
    table, labels = _as_list(table), _as_list(labels)
    if labels is not None and (isinstance(table, (str, os.PathLike)) or not isinstance(table, Sequence)):
        raise SettingsError("labels go with a sequence of texts; a table brings its own, in its label column")
    if isinstance(table, (str, os.PathLike)):
        files = _files(Path(table))
        return Table(source=str(table), files=files, memory=None, label_column=label_column, **options)
    source = "the table in memory"
    try:
        if isinstance(table, Sequence) and pair_column is not None:
            raise SettingsError("second texts go with a table that has a column of them, not with a sequence of texts")
        if isinstance(table, Sequence):
            columns = {text_column: list(table)} | ({} if labels is None else {label_column or "label": list(labels)})
            label_column = None if labels is None else label_column or "label"
            memory = pa.table(columns)
        else:
            memory = pa.table(dict(table) if isinstance(table, Mapping) else table)
    except (pa.ArrowException, TypeError, ValueError, UnicodeError) as error:
        raise TableError(f"{source} cannot be read as columns of texts and labels: {error}") from None
    return Table(source=source, files=(), memory=memory, label_column=label_column, **options)


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


def _as_list(values: Any) -> Any:
    """A one-dimensional array or a Series as a list; anything else as it is."""
    return values.tolist() if getattr(values, "ndim", None) == 1 and hasattr(values, "tolist") else values


def _files(path: Path) -> tuple[Path, ...]:
    known = ", ".join(sorted(FORMATS))
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith((".", "_")))
        kinds = {file_format(p) for p in files}
        if len(kinds) != 1 or None in kinds:
            names = ", ".join(p.name for p in files[:4]) or "nothing"
            raise TableError(f"{path} must hold table files of one kind ({known}); it holds {names}")
        return tuple(files)
    if not path.exists():
        raise TableError(f"{path} does not exist; give a table ({known}) or a folder of them")
    if file_format(path) is None:
        raise TableError(f"{path} is not a table by its name; it must end in one of {known}")
    return (path,)


def _explain(file: Path, error: Exception) -> str:
    """One line on why Arrow could not parse a file, with the row where that can be told."""
    reason = " ".join(str(error).split())
    if file_format(file) == "jsonl":
        # Arrow counts rows from the start of its block, so look for the line ourselves.
        with pa.input_stream(str(file)) as stream:
            for number, line in enumerate(stream.read().splitlines(), 1):
                try:
                    if line.strip() and not isinstance(json.loads(line), dict):
                        return f"{file}, line {number:,}: not a JSON object"
                except (ValueError, RecursionError) as found:
                    return f"{file}, line {number:,}: not JSON ({found}); it must hold one object a line"
    if "straddling" in reason:
        return f"{file}: a row is longer than {_BLOCK_BYTES[-1]:,} bytes; is a quotation mark left open?"
    return f"{file}: {reason}"
