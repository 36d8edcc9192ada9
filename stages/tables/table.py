"""Tables of texts, read a batch at a time: a file, a folder of files of one format, or a table in memory."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...cache.documents import is_text
from ...cache.errors import HeadstartError, OutputExistsError, SettingsError, StorageError, TableError
from ..settings import BY_NAME, TableSettings
from .columns import ColumnNames, blank_texts, read_texts, skip_advice
from .formats import SUFFIXES, file_format, read_file, readable, require_settings
from .labels import Label, LabelRules, blank_labels, read_label_column, read_label_flags
from .memory import SOURCE, as_arrow, as_list, texts_as_arrow
from .remote import RemoteFile, remote_url
from .text_files import BATCH_ROWS, Reading


@dataclasses.dataclass(frozen=True)
class TableRows:
    """Some consecutive rows of a table, the bad ones left out unless ``problems`` tells them.

    Attributes:
        texts: The texts.
        pairs: The second texts; None for single texts.
        labels: The labels as they are spelled; None where they are not read.
        files: The file of each row.
        numbers: Each row's number in its file, from 1; the header is not counted.
        skipped: How many bad rows among them were left out.
        cells: All columns as the table has them; None where the other columns are not read.
        problems: Why each row is bad, "" for a good row; None where bad rows are left out. Texts of bad rows are "".
        earlier: How many rows of the table stand in files before this one, bad rows included.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: list[Label] | None
    files: list[str]
    numbers: list[int]
    skipped: int
    cells: pa.Table | None = None
    problems: list[str] | None = None
    earlier: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: slice) -> TableRows:
        """Return some of the rows; ``skipped`` and ``earlier`` are 0."""
        pairs, problems = (None if values is None else values[rows] for values in (self.pairs, self.problems))
        labels = None if self.labels is None else self.labels[rows]
        cells = None if self.cells is None else self.cells[rows]
        return TableRows(self.texts[rows], pairs, labels, self.files[rows], self.numbers[rows], 0, cells, problems)

    def take(self, rows: Sequence[int]) -> TableRows:
        """Return the texts of some rows, by their numbers; ``labels``, ``skipped``, ``cells`` and ``earlier`` are left
        out."""
        pairs = None if self.pairs is None else [self.pairs[row] for row in rows]
        files, numbers = [self.files[row] for row in rows], [self.numbers[row] for row in rows]
        return TableRows([self.texts[row] for row in rows], pairs, None, files, numbers, 0)

    def place(self, index: int) -> str:
        """Return the file and the number of a row, for a message."""
        return f"{self.files[index]}, row {self.numbers[index]:,}"


def join_rows(parts: Sequence[TableRows]) -> TableRows:
    """Join consecutive rows; ``labels``, ``skipped`` and ``earlier`` are left out."""
    parts = [part for part in parts if len(part)]  # a part without rows may not know whether there are pairs
    in_pairs = all(part.pairs is not None for part in parts)
    return TableRows(
        texts=[text for part in parts for text in part.texts],
        pairs=[pair for part in parts for pair in part.pairs or ()] if in_pairs else None,
        labels=None,
        files=[file for part in parts for file in part.files],
        numbers=[number for part in parts for number in part.numbers],
        skipped=0,
        cells=_join_cells([part.cells for part in parts if part.cells is not None]),
        problems=[problem for part in parts for problem in part.problems or ()]
        if all(part.problems is not None for part in parts)
        else None,
    )


def _join_cells(parts: Sequence[pa.Table]) -> pa.Table | None:
    """Join tables of cells; a column that a part lacks is null there."""
    if not parts:
        return None
    same = all(part.schema.equals(parts[0].schema) for part in parts)  # columns of one name can be joined only so
    return pa.concat_tables(parts, promote_options="none" if same else "permissive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table that can be read again and again, with the same result each time.

    Attributes:
        source: The table's name in a message.
        files: The files, in reading order; empty for a table in memory.
        memory: The table in memory, or None.
        columns: The columns that are read.
        label_rules: How the labels are read.
        settings: How the files are read.
        skip_bad_rows: Leave out bad rows, instead of raising; where all columns are read, keep them, each with its
            problem. None: raise, without the advice to skip them.
    """

    source: str
    files: tuple[Path, ...]
    memory: pa.Table | None
    columns: ColumnNames
    label_rules: LabelRules
    settings: TableSettings
    skip_bad_rows: bool | None
    remote: RemoteFile | None = None  # whose copy is the only file

    def batches(self, note: Callable[[str], None] = lambda text: None) -> Iterator[TableRows]:
        """Read the rows in order.

        Args:
            note: Receives what the user should know of the files.

        Raises:
            TableError: a file cannot be parsed, a column is missing or has the wrong type, or a row is bad.
            StorageError: a file cannot be read.
        """
        if self.memory is not None:
            try:
                yield from self._good_rows(self.memory.to_batches(BATCH_ROWS), self.source, left_out={})
            except UnicodeError as error:
                raise TableError(f"{self.source}: a text or a label is not UTF-8: {error}") from None
        rows = 0
        named = str if self.remote is None else self.remote.named
        for file in self.files:
            reading = Reading(
                file=file,
                settings=self.settings,
                skip_bad_rows=self.skip_bad_rows,
                note=lambda text: note(named(text)),
            )
            earlier, where = rows, named(str(file))
            try:
                with readable(reading):
                    for batch in self._good_rows(read_file(reading, self.columns), where, left_out=reading.left_out):
                        rows += len(batch) + batch.skipped
                        yield dataclasses.replace(batch, earlier=earlier)
            except HeadstartError as error:
                if self.remote is None:
                    raise
                raise type(error)(named(str(error))) from None

    def require_outside(self, out: Path) -> None:
        """Refuse an output that is a file of the table, or that would be one the next time.

        Raises:
            OutputExistsError: it is such an output.
        """
        if out.resolve() in [file.resolve() for file in self.files]:
            raise OutputExistsError(f"{out} is the table that is read; choose another `out`")
        if Path(self.source).is_dir() and out.resolve().parent in [file.resolve().parent for file in self.files]:
            raise OutputExistsError(
                f"{out} lies in the table's own folder, and would be taken for a part of it; choose another `out`"
            )

    def require_columns(self) -> None:
        """Check the first rows of every file: a mistake in the last file is found before work on the first begins.

        Raises:
            TableError: as for `batches`.
            StorageError: a file cannot be read.
        """
        for file in self.files:
            next(dataclasses.replace(self, files=(file,)).batches(), None)

    def state(self) -> tuple[tuple[int, int, int], ...]:
        """Return the inode, size and modification time of each file: they change when a file changes."""
        try:
            stats = [file.stat() for file in self.files]
        except OSError as error:
            raise StorageError(f"cannot read {error.filename}: {error.strerror}") from None
        remote = () if self.remote is None else ((0, 0, self.remote.state()),)
        return (*remote, *((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats))

    def _good_rows(
        self, batches: Iterable[pa.RecordBatch], where: str, *, left_out: dict[int, str]
    ) -> Iterator[TableRows]:
        """Number and check each row of a file.

        Args:
            batches: The file's rows, without those that were left out.
            where: The file's name in a message.
            left_out: The rows that were left out so far, by number, and why.
        """
        last, columns = 0, self.columns
        empty: pa.Table | None = None
        # A batch of an Arrow file may have more rows than should be Python strings at once.
        for batch in (b.slice(at, BATCH_ROWS) for b in batches for at in range(0, max(len(b), 1), BATCH_ROWS)):
            columns.require(batch.schema.names, where)
            numbers = list(itertools.islice((n for n in itertools.count(last + 1) if n not in left_out), len(batch)))
            texts = read_texts(batch.column(columns.text), columns.text, where, numbers)
            pairs = cells = None
            if columns.pair is not None:
                pairs = read_texts(batch.column(columns.pair), columns.pair, where, numbers)
            labels = self._labels(batch, where, numbers)
            if columns.keep_others:
                cells = pa.Table.from_batches([batch])
            bad = {} if labels is None or columns.label is None else blank_labels(labels, columns.label)
            bad |= blank_texts({columns.text: texts, columns.pair: pairs})
            if bad and not self.skip_bad_rows:
                index = min(bad)
                advice = skip_advice(self.skip_bad_rows)
                raise TableError(f"{where}, row {numbers[index]:,}: {bad[index]}; correct it{advice}")
            before, last = last, numbers[-1] if numbers else last
            if cells is not None and self.skip_bad_rows:
                empty = cells[:0]
                problems = collections.ChainMap({numbers[i]: problem for i, problem in bad.items()}, left_out)
                yield _with_problems(range(before + 1, last + 1), where, numbers, problems, texts, pairs, cells)
                continue
            good = [i for i in range(len(texts)) if i not in bad]
            yield TableRows(
                texts=[texts[i] or "" for i in good],
                pairs=None if pairs is None else [pairs[i] or "" for i in good],
                labels=None if labels is None else [label for i in good if (label := labels[i]) is not None],
                files=[where] * len(good),
                numbers=[numbers[i] for i in good],
                skipped=len(bad) + last - before - len(numbers),
                cells=cells,
            )
        trailing = range(last + 1, max(left_out, default=last) + 1)
        if trailing and empty is not None:
            yield _with_problems(trailing, where, [], left_out, [], None if columns.pair is None else [], empty)
        elif trailing:
            yield TableRows(texts=[], pairs=None, labels=None, files=[], numbers=[], skipped=len(trailing))

    def _labels(self, batch: pa.RecordBatch, where: str, numbers: Sequence[int]) -> list[Label | None] | None:
        """Return the labels of some rows; None where labels are not read."""
        label = self.columns.label
        if label is None:
            return None
        if isinstance(label, str):
            return read_label_column(batch.column(label), label, where, numbers, self.label_rules.delimiter)
        return read_label_flags({name: batch.column(name) for name in label}, where, numbers)


def _with_problems(
    span: range,
    where: str,
    numbers: Sequence[int],
    problems: Mapping[int, str],
    texts: Sequence[str | None],
    pairs: Sequence[str | None] | None,
    cells: pa.Table,
) -> TableRows:
    """Return all rows whose numbers are in a span; those that were left out have null cells.

    Args:
        span: The numbers.
        where: The file's name.
        numbers: The numbers of the rows that were not left out.
        problems: Why a row is bad, by its number.
        texts: Texts of the rows that were not left out.
        pairs: Their second texts, or None.
        cells: All their columns.
    """
    places = {number: place for place, number in enumerate(numbers)}

    def good(values: Sequence[str | None]) -> list[str]:
        return ["" if number in problems else values[places[number]] or "" for number in span]

    complete = len(numbers) == len(span)
    return TableRows(
        texts=good(texts),
        pairs=None if pairs is None else good(pairs),
        labels=None,
        files=[where] * len(span),
        numbers=list(span),
        skipped=0,
        cells=cells if complete else cells.take(pa.array([places.get(number) for number in span], pa.int64())),
        problems=[problems.get(number, "") for number in span],
    )


def open_table(
    table: Any,
    *,
    labels: Sequence[str | int] | None = None,
    text_column: str,
    pair_column: str | None = None,
    label_column: str | tuple[str, ...] | None,
    label_rules: LabelRules | None = None,
    skip_bad_rows: bool | None = None,
    keep_others: bool = False,
    label_optional: bool = False,
    settings: TableSettings = BY_NAME,
) -> Table:
    """Open a table. Files are found but not read; a table in memory is converted to Arrow.

    Args:
        table: A file or folder; a URL of a file that fsspec reads (``s3://``, ``gs://``, ``hf://``, ``https://``); or
            in memory: a sequence of texts, a mapping of columns, an Arrow table, or a
            DataFrame or `datasets.Dataset`. Of a table in memory, only the columns that are read are converted.
        labels: One label per text, where ``table`` is a sequence of texts.
        text_column: Column of the texts.
        pair_column: Column of the second texts, or None.
        label_column: Column of the labels; or several columns of 0 and 1, each a label; or None.
        label_rules: How labels are read; None: as their values say.
        skip_bad_rows: Leave out rows without text or label, instead of raising. None: raise, without the advice to
            skip them, for callers that offer no such setting.
        keep_others: Read all other columns too, as they are.
        label_optional: The caller can do without labels, so an error offers it.
        settings: How to read files.

    Raises:
        TableError: there is no such file, its format is unknown, a folder mixes formats, or a table in memory cannot
            be read as columns.
        SettingsError: one column is named twice, or labels, second texts or settings of files are given where they
            cannot be used.
    """
    columns = ColumnNames(text_column, pair_column, label_column, keep_others, label_optional)
    names = columns.names()
    rules = label_rules or LabelRules()
    rules.require_fit(label_column)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SettingsError(f"the column {twice!r} is named for two things (texts, second texts, labels); name others")
    table, labels = as_list(table), as_list(labels)
    if labels is not None and (isinstance(table, (str, os.PathLike)) or not isinstance(table, Sequence)):
        raise SettingsError("labels go with a sequence of texts; a table brings its own, in its label column")
    if isinstance(table, (str, os.PathLike)):
        url = remote_url(table)
        remote = None if url is None else RemoteFile(url)
        table = table if url is None else url
        files = _files(Path(table) if remote is None else remote.copy)
        require_settings(settings, {file_format(file) for file in files}, str(table))
        return Table(
            source=str(table),
            files=files,
            memory=None,
            columns=columns,
            label_rules=rules,
            settings=settings,
            skip_bad_rows=skip_bad_rows,
            remote=remote,
        )
    require_settings(settings, set(), SOURCE)
    if isinstance(table, Sequence) and pair_column is not None:
        raise SettingsError("second texts go with a table that has a column of them, not with a sequence of texts")
    if isinstance(table, Sequence):
        name = label_column if isinstance(label_column, str) else "label"
        columns = ColumnNames(text_column, None, None if labels is None else name, keep_others)
        memory = texts_as_arrow(dict(zip(columns.names(), (table, labels), strict=False)))
    else:
        memory = as_arrow(table, columns)
    return Table(
        source=SOURCE,
        files=(),
        memory=memory,
        columns=columns,
        label_rules=rules,
        settings=settings,
        skip_bad_rows=skip_bad_rows,
    )


def _files(path: Path) -> tuple[Path, ...]:
    known = ", ".join(sorted(SUFFIXES))
    for name in (path, *(path.iterdir() if path.is_dir() else ())):
        if not is_text(str(name)):
            raise TableError(f"{str(name)!a} is a name that is not UTF-8; rename it")
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith((".", "_")))
        if (path / "dataset_dict.json").is_file():
            parts = ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir()))
            raise TableError(f"{path} holds several tables, saved by datasets; give the folder of one ({parts})")
        if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():  # saved by datasets
            files = [p for p in files if p.suffix != ".json"]
        formats = {file_format(p) for p in files}
        if len(formats) != 1 or None in formats:
            names = ", ".join(p.name for p in files[:4]) or "nothing"
            raise TableError(f"{path} must hold table files of one kind ({known}); it holds {names}")
        return tuple(files)
    if not path.exists():
        if path.is_symlink():
            raise TableError(f"{path} is a link to nothing, or to itself; correct it")
        raise TableError(f"{path} does not exist; give a table ({known}) or a folder of them")
    if not path.is_file():  # a pipe, say: a table is read more than once
        raise TableError(f"{path} is not a file; write the table to one, and give that")
    if file_format(path) is None:
        raise TableError(f"{path} is not a table by its name; it must end in one of {known}")
    return (path,)
