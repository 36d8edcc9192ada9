"""The first reading of a table: how many rows, which texts, which labels. It costs no encoding."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ...cache.errors import TableError
from ...cache.hashing import Hashes, hash_texts
from ...cache.reader import Cache
from ..progress import Report, Step
from .table import Table, TableRows, join_rows

_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
TOP_ROWS, TOP_CHARACTERS = 1 << 15, 1 << 24
"""How much of a table is kept as it was read: all of a small one, which then need not be read again."""
_CHUNK = 1 << 16
"""Rows that are looked at together where an array of all of them would take memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableScan:
    """What a table holds.

    Attributes:
        text_hashes: (rows, 16) uint8, one per good row.
        labels: (rows,) int64, indices into ``label_names``; None without a label column.
        label_names: The classes: by value where all are whole numbers, else in the order of their characters.
        distinct_texts: How many of the rows' texts are not alike.
        conflicting_texts: How many distinct texts stand in the table with two different labels.
        skipped: Bad rows left out.
        state: What the file system said of the files before they were read.
        top: The first rows, of a small table all of them, without their labels.
    """

    text_hashes: Hashes
    labels: npt.NDArray[np.int64] | None
    label_names: tuple[str, ...] | None
    distinct_texts: int
    conflicting_texts: int
    skipped: int
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
        """The same, with the arrays of a cache of this table in place of those in memory; of a large one, no rows."""
        top = self.top if self.holds_all else join_rows([])
        return dataclasses.replace(self, text_hashes=cache.text_hashes, labels=cache.labels, top=top)


def scan_table(table: Table, report: Report) -> TableScan:
    """Read a table once. While it is read, a row takes 24 bytes of memory; at the end, for a moment, 56.

    The rows themselves are kept up to `TOP_ROWS` and about `TOP_CHARACTERS`.

    Raises:
        TableError: it cannot be parsed, has no rows, a row is bad, or its labels are not classes.
        StorageError: it cannot be read.
    """
    state = table.state()
    hashes: list[Hashes] = []
    codes: list[npt.NDArray[np.int64]] = []
    numbers: dict[str, int] = {}  # label name -> number, in order of appearance
    skipped = rows = 0
    top: list[TableRows] = []
    characters = 0
    for batch in table.batches():
        hashes.append(hash_texts(batch.texts, batch.pairs))
        if batch.labels is not None:
            codes.append(np.array([numbers.setdefault(name, len(numbers)) for name in batch.labels], np.int64))
        skipped += batch.skipped
        if rows < TOP_ROWS and characters < TOP_CHARACTERS:
            top.append(batch)
            characters += sum(map(len, batch.texts)) + sum(map(len, batch.pairs or ()))
        rows += len(batch.texts)
        report(Step("reading", rows, 0, "rows"))
    if table.state() != state:
        raise _changed(table)
    if rows == 0:
        raise TableError(f"{table.source} has no rows" + (f" (all {skipped:,} are bad)" if skipped else ""))
    labels = names = None
    if table.columns.label is not None:
        names = _sorted_names(list(numbers), table)
        ranks = {name: rank for rank, name in enumerate(names)}
        labels = np.concatenate(codes)
        codes.clear()
        order = np.array([ranks[name] for name in numbers], np.int64)
        for start in range(0, rows, _CHUNK):  # in place
            labels[start : start + _CHUNK] = order[labels[start : start + _CHUNK]]
    text_hashes = np.concatenate(hashes)
    hashes.clear()
    distinct, conflicting = count_texts(text_hashes, labels)
    return TableScan(
        text_hashes=text_hashes,
        labels=labels,
        label_names=names,
        distinct_texts=distinct,
        conflicting_texts=conflicting,
        skipped=skipped,
        state=state,
        top=join_rows(top)[:TOP_ROWS],
    )


def count_texts(text_hashes: Hashes, labels: npt.NDArray[np.int64] | None) -> tuple[int, int]:
    """Count the distinct texts, and those of them that bear two different labels.

    Args:
        text_hashes: (rows, 16) uint8.
        labels: (rows,) int64, or None.
    """
    halves = text_hashes.view("<u8")  # (rows, 2)
    keys = [halves[:, 1], halves[:, 0]]
    order = np.lexsort(keys if labels is None else [labels, *keys])  # (rows,) texts together, and their labels in them
    new = np.ones(len(order) + 1, bool)  # where another text begins; and the end
    for start in range(1, len(order), _CHUNK):
        here, before = order[start : start + _CHUNK], order[start - 1 : start - 1 + _CHUNK]
        new[start : start + _CHUNK][: len(here)] = (halves[here] != halves[before[: len(here)]]).any(axis=1)
    begins = np.flatnonzero(new)  # (distinct + 1,)
    distinct, conflicting = len(begins) - 1, 0
    for start in range(0, distinct if labels is not None else 0, _CHUNK):
        part = begins[start : start + _CHUNK + 1]  # a text's rows are sorted by label: its first and last tell
        assert labels is not None
        conflicting += int((labels[order[part[:-1]]] != labels[order[part[1:] - 1]]).sum())
    return distinct, conflicting


def read_windows(table: Table, scan: TableScan, window_rows: int) -> Iterator[tuple[slice, TableRows]]:
    """Give a table's rows in windows of so many, without their labels.

    A table that is too large to be kept is read again, and checked to be still the one that was surveyed.

    Yields:
        The rows' place among the good rows of the table, and the rows.

    Raises:
        TableError: the table has changed since.
    """
    if scan.holds_all:
        for place in (slice(start, start + window_rows) for start in range(0, scan.rows, window_rows)):
            rows = scan.top[place]
            yield slice(place.start, place.start + len(rows)), rows
        return
    start = 0
    for rows in _regrouped(table.batches(), window_rows):
        if table.state() != scan.state:
            raise _changed(table)
        place = slice(start, start + len(rows.texts))
        if not np.array_equal(hash_texts(rows.texts, rows.pairs), scan.text_hashes[place]):
            raise _changed(table)
        yield place, rows
        start = place.stop
    if start != scan.rows:
        raise _changed(table)


def _changed(table: Table) -> TableError:
    return TableError(f"{table.source} changed while it was read; run again when nothing writes to it")


def _regrouped(batches: Iterator[TableRows], window_rows: int) -> Iterator[TableRows]:
    """Cut the same rows into windows of equal size, without their labels."""
    held = join_rows([])
    for batch in batches:
        held = join_rows([held, batch])
        while len(held) >= window_rows:
            yield held[:window_rows]
            held = held[window_rows:]
    if len(held):
        yield held


def _sorted_names(names: list[str], table: Table) -> tuple[str, ...]:
    if all(_WHOLE_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    fractions = [name for name in names if not name.lstrip("+-").isdigit()]
    if fractions and all(_NUMBER.fullmatch(name) for name in names):
        raise TableError(
            f"{table.source}: the column {table.columns.label!r} holds numbers such as {fractions[0]!r}: regression "
            "targets are not supported; if these are classes, write them as whole numbers or names"
        )
    return tuple(sorted(names))
