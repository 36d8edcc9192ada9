"""A part of a table: some of its rows, read without the others being kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from ..types import Mask
from .table import Table, TableRows


class RowReader:
    """Reads runs of a table's good rows. A run that begins after the last one goes on reading where that one ended, so
    all runs in order take one reading of the table."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._batches: Iterator[TableRows] = iter(())
        self._held: TableRows | None = None
        self._at: int | None = None  # the first row that was not given yet; None before the first reading

    def rows(self, start: int, stop: int) -> Iterator[TableRows]:
        """Yield the good rows from ``start`` on, counted from 0, up to ``stop``, in parts.

        Raises:
            TableError, StorageError: as for `Table.batches`.
        """
        if self._at is None or start < self._at:
            self._batches, self._held, self._at = self.table.batches(), None, 0
        while self._at < stop:
            held = self._held if self._held is not None else next(self._batches, None)
            if held is None:  # the table has become shorter
                return
            first, last = max(start - self._at, 0), min(stop - self._at, len(held))
            self._held = held[last:] if last < len(held) else None
            self._at += last
            if first < last:
                yield held[first:last]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablePart(Table):
    """Some of a table's good rows, as a table of its own."""

    reader: RowReader
    start: int
    stop: int
    chosen: Mask | None = None  # which of the rows from start to stop; None for all

    def batches(self, note: Callable[[str], None] = lambda text: None) -> Iterator[TableRows]:
        at = 0
        for rows in self.reader.rows(self.start, self.stop):
            if self.chosen is None:
                yield rows
            else:
                yield rows.take(np.flatnonzero(self.chosen[at : at + len(rows)]).tolist())
            at += len(rows)


def part_of(reader: RowReader, start: int, stop: int, chosen: Mask | None = None) -> TablePart:
    """Return the good rows from ``start`` up to ``stop`` of a reader's table, or the chosen ones of them."""
    table = reader.table
    fields = {field.name: getattr(table, field.name) for field in dataclasses.fields(Table)}
    return TablePart(**fields, reader=reader, start=start, stop=stop, chosen=chosen)
