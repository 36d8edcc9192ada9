"""The first reading of a table: how many rows, which texts, labels and columns. Then its rows, a window at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from ...cache.errors import TableError
from ...cache.hashing import Hashes, hash_texts
from ...cache.label_kind import LabelKind
from ...cache.reader import Cache, Labels
from ..progress import Note, Report, Step
from ..types import Indices
from .json_lines import JsonKinds
from .labels import LabelScan
from .table import Table, TableRows, join_rows

KEEP_ROWS, KEEP_CHARACTERS = 1 << 15, 1 << 24
"""How much of a table `scan_table` keeps in memory: all of a small table, which then is not read again."""
_CHUNK = 1 << 16
"""Rows that are handled together, where an array for all rows would take too much memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableScan:
    """What the first reading of a table found.

    Attributes:
        text_hashes: (rows, 16) uint8, one per good row.
        labels: In the shape and dtype that ``label_kind`` says; None without a label column.
        label_names: The classes, as `labels.sorted_classes` sorts them; None without classes.
        label_kind: None without labels.
        distinct_texts: The number of distinct texts.
        conflicting_texts: The number of distinct texts that have two different labels in the table.
        skipped: Bad rows left out.
        row_numbers: (rows,) int64, of each row in the table, from 1, counted over all files and bad rows; None where
            they are 1, 2, 3, ...
        state: `Table.state` before the reading.
        top: The first rows without their labels; all rows of a small table.
    """

    text_hashes: Hashes
    labels: Labels | None
    label_names: tuple[str, ...] | None
    label_kind: LabelKind | None
    distinct_texts: int
    conflicting_texts: int
    skipped: int
    row_numbers: Indices | None
    state: tuple[tuple[int, int, int], ...]
    top: TableRows

    @property
    def rows(self) -> int:
        return len(self.text_hashes)

    @property
    def holds_all(self) -> bool:
        """Whether ``top`` is the whole table."""
        return len(self.top) == self.rows

    def in_file(self, cache: Cache) -> TableScan:
        """Return a scan that takes less memory: its arrays are those of a cache of this table, which are mapped from
        its file, and a large table's ``top`` is empty."""
        top = self.top if self.holds_all else join_rows([])
        return dataclasses.replace(
            self, text_hashes=cache.text_hashes, labels=cache.labels, row_numbers=cache.row_numbers, top=top
        )


def scan_table(
    table: Table, report: Report, *, keep_rows: int = KEEP_ROWS, keep_characters: int = KEEP_CHARACTERS
) -> TableScan:
    """Read a table once. A row takes 24 bytes of memory during the reading, and 56 bytes for a moment at the end; 8
    more where bad rows are left out.

    Args:
        table: The table.
        report: Receives progress.
        keep_rows: Most rows in `TableScan.top`.
        keep_characters: About how many characters `TableScan.top` may have.

    Raises:
        TableError: the table cannot be parsed, has no rows, has a bad row, changes during the reading, or its labels
            are not classes.
        StorageError: the table cannot be read.
    """
    state = table.state()
    hashes: list[Hashes] = []
    columns = table.columns
    found = None if columns.label is None else LabelScan(columns.label, table.source, table.label_rules)
    skipped = rows = 0
    row_numbers: list[Indices] = []  # from the first bad row on
    top: list[TableRows] = []
    characters = 0
    for batch in table.batches(lambda text: report(Note(text))):
        hashes.append(hash_texts(batch.texts, batch.pairs))
        if found is not None and batch.labels is not None:
            found.add(batch.labels, batch.place)
        if batch.skipped and not skipped:
            row_numbers.append(np.arange(1, rows + 1))
        skipped += batch.skipped
        if skipped:
            row_numbers.append(np.array(batch.numbers, np.int64) + batch.earlier)
        if rows < keep_rows and characters < keep_characters:
            top.append(batch)
            characters += sum(map(len, batch.texts)) + sum(map(len, batch.pairs or ()))
        rows += len(batch.texts)
        report(Step("reading", rows, 0, "rows"))
    _require_state(table, state)
    _require_rows(table, rows, skipped)
    if skipped:
        report(Note(f"{table.source}: bad rows left out: {skipped:,}"))
    labels = None if found is None else found.finish()
    for note in () if labels is None else labels.notes:
        report(Note(note))
    text_hashes = np.concatenate(hashes)
    hashes.clear()
    distinct, conflicting = count_texts(text_hashes, None if labels is None else labels.values)
    return TableScan(
        text_hashes=text_hashes,
        labels=None if labels is None else labels.values,
        label_names=None if labels is None else labels.names,
        label_kind=None if labels is None else labels.kind,
        distinct_texts=distinct,
        conflicting_texts=conflicting,
        skipped=skipped,
        # Rows that were left out after the last good one change no number.
        row_numbers=numbered if skipped and (numbered := np.concatenate(row_numbers))[-1] != rows else None,
        state=state,
        top=join_rows(top)[:keep_rows],
    )


def count_texts(text_hashes: Hashes, labels: Labels | None) -> tuple[int, int]:
    """Count the distinct texts, and those of them that have two different labels.

    Args:
        text_hashes: (rows, 16) uint8.
        labels: (rows,) or (rows, classes), or None.
    """
    if labels is not None and labels.ndim == 2:  # a number for each set of labels
        sets = np.ascontiguousarray(labels).view(f"V{labels.shape[1]}")[:, 0]
        labels = np.unique(sets, return_inverse=True)[1]
    halves = text_hashes.view("<u8")  # (rows, 2)
    keys = [halves[:, 1], halves[:, 0]]
    order = np.lexsort(keys if labels is None else [labels, *keys])  # (rows,) sorted by text, then by label
    new = np.ones(len(order) + 1, bool)  # where the next text begins, and the end
    for start in range(1, len(order), _CHUNK):
        here, before = order[start : start + _CHUNK], order[start - 1 : start - 1 + _CHUNK]
        new[start : start + _CHUNK][: len(here)] = (halves[here] != halves[before[: len(here)]]).any(axis=1)
    begins = np.flatnonzero(new)  # (distinct + 1,)
    distinct, conflicting = len(begins) - 1, 0
    for start in range(0, distinct if labels is not None else 0, _CHUNK):
        part = begins[start : start + _CHUNK + 1]  # rows of one text are sorted by label: compare the first and last
        assert labels is not None
        conflicting += int((labels[order[part[:-1]]] != labels[order[part[1:] - 1]]).sum())
    return distinct, conflicting


def read_windows(table: Table, scan: TableScan, window_rows: int) -> Iterator[tuple[slice, TableRows]]:
    """Yield a table's rows in windows of ``window_rows``, without their labels.

    A table that `scan` does not hold is read again, and its texts are compared with the first reading.

    Yields:
        The place of the rows among the good rows of the table, and the rows.

    Raises:
        TableError: the table has changed since the first reading.
    """
    if scan.holds_all:
        for place in (slice(start, start + window_rows) for start in range(0, scan.rows, window_rows)):
            rows = scan.top[place]
            yield slice(place.start, place.start + len(rows)), rows
        return
    start = 0
    for rows in _windows(table.batches(), window_rows):
        _require_state(table, scan.state)
        place = slice(start, start + len(rows.texts))
        if not np.array_equal(hash_texts(rows.texts, rows.pairs), scan.text_hashes[place]):
            raise _changed(table)
        yield place, rows
        start = place.stop
    if start != scan.rows:
        raise _changed(table)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnScan:
    """What the first reading of a table with all its columns found; it takes no memory that grows with the rows.

    Attributes:
        rows: The number of good rows.
        schema: All columns that a file or a row has, in the order of their first appearance.
        json_types: For each column of JSON cells, the type that all its values fit in. Where their kinds differ, or
            they are lists or objects, that is a string of JSON.
        state: `Table.state` before the reading.
    """

    rows: int
    schema: pa.Schema
    json_types: dict[str, pa.DataType]
    state: tuple[tuple[int, int, int], ...]


def scan_columns(table: Table, report: Report) -> ColumnScan:
    """Read a table that was opened with ``keep_others`` once.

    Raises:
        TableError: as for `scan_table`; or two files give one column types that do not fit together.
        StorageError: the table cannot be read.
    """
    state, rows, skipped = table.state(), 0, 0
    schema: pa.Schema | None = None
    kinds = JsonKinds()
    for batch in table.batches(lambda text: report(Note(text))):
        if batch.cells is not None:
            schema = _unified(schema, batch.cells.schema, table)
            kinds.add(batch.cells)
        skipped += batch.skipped
        rows += len(batch)
        report(Step("reading", rows, 0, "rows"))
    _require_state(table, state)
    _require_rows(table, rows, skipped)
    assert schema is not None
    return ColumnScan(rows=rows, schema=schema, json_types=kinds.types(), state=state)


def read_column_windows(table: Table, scan: ColumnScan, window_rows: int) -> Iterator[TableRows]:
    """Yield a table's rows with all their columns, in windows of ``window_rows``.

    Raises:
        TableError: the table has changed since the first reading.
    """
    rows = 0
    for window in _windows(table.batches(), window_rows):
        _require_state(table, scan.state)
        rows += len(window)
        yield window
    if rows != scan.rows:
        raise _changed(table)


def _unified(schema: pa.Schema | None, other: pa.Schema, table: Table) -> pa.Schema:
    """Return a schema that rows of both schemas fit in."""
    if schema is None or schema.equals(other):
        return other if schema is None else schema
    try:
        return pa.unify_schemas([schema, other], promote_options="permissive")
    except pa.ArrowException as error:
        raise TableError(f"{table.source}: the columns of its files do not fit together: {error}") from None


def _require_state(table: Table, state: tuple[tuple[int, int, int], ...]) -> None:
    if table.state() != state:
        raise _changed(table)


def _require_rows(table: Table, rows: int, skipped: int) -> None:
    if rows == 0:
        raise TableError(f"{table.source} has no rows" + (f" (all {skipped:,} are bad)" if skipped else ""))


def _changed(table: Table) -> TableError:
    return TableError(f"{table.source} changed while it was read; run again when nothing writes to it")


def _windows(batches: Iterator[TableRows], window_rows: int) -> Iterator[TableRows]:
    """Cut the same rows into windows of equal size, without their labels."""
    held = join_rows([])
    for batch in batches:
        held = join_rows([held, batch])
        while len(held) >= window_rows:
            yield held[:window_rows]
            held = held[window_rows:]
    if len(held):
        yield held
