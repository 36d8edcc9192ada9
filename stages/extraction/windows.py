"""The windows of a table on their way to the encoder: read, looked up in other caches, tokenized."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ...cache.errors import EncoderError
from ...cache.layout import Layout
from ..encoders.encoder import Encoder
from ..tables.scan import TableScan, read_windows
from ..tables.table import Table, TableRows, join_rows
from ..types import Indices, Mask, TokenIds
from .reuse import ReusableCaches, RowLocations, join_locations

_JOINED_BYTES = 64 << 20
"""What the features of windows that are joined take in memory, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Some consecutive rows of a table.

    Attributes:
        place: Which, of its good rows.
        rows: As they were read.
        donated: Where other caches have them.
        tokenized: (rows to tokenize,) positions in the window.
        sequences: What the tokenizer made of those.
        cut: (rows to tokenize,) bool, which of them were cut.
    """

    place: slice
    rows: TableRows
    donated: RowLocations
    tokenized: Indices
    sequences: list[TokenIds]
    truncated: Mask

    def __len__(self) -> int:
        return len(self.rows)


def tokenized_windows(
    table: Table,
    scan: TableScan,
    encoder: Encoder,
    donors: ReusableCaches,
    *,
    layout: Layout,
    window_rows: int,
    kept: Mask,
) -> Iterator[Window]:
    """Read a table's rows, look them up by their texts, and tokenize those that are lacking.

    Args:
        table: The rows.
        survey: What its first reading found.
        encoder: Encoder.
        donors: Caches that may have the rows.
        layout: Of the file that is written.
        window_rows: How many rows are read at a time.
        kept: (blocks,) bool, which of the file's blocks are written; of a window of such alone nothing is tokenized.

    Raises:
        TableError: the table changed since it was surveyed.
        EncoderError: the tokenizer makes nothing of a text.
    """
    most_rows = _JOINED_BYTES // (4 * sum(layout.widths.values()))
    for place, rows, donated in _joined(_found(table, scan, donors, window_rows), window_rows, most_rows):
        lacking = np.empty(0, np.int64)
        if not kept[layout.blocks_of(place)].all():
            lacking = np.flatnonzero(~donated.found)
        pairs = None if rows.pairs is None else [rows.pairs[row] for row in lacking]
        sequences, truncated = encoder.tokenize([rows.texts[row] for row in lacking], pairs)
        for row, sequence in zip(lacking, sequences, strict=True):
            if not len(sequence):
                where = rows.place(int(row))
                raise EncoderError(f"{where}: the encoder's tokenizer makes no tokens of this text; mend the row")
        yield Window(
            place=place, rows=rows, donated=donated, tokenized=lacking, sequences=sequences, truncated=truncated
        )


def _found(
    table: Table, scan: TableScan, donors: ReusableCaches, window_rows: int
) -> Iterator[tuple[slice, TableRows, RowLocations]]:
    """Read the table in windows, and look each up."""
    for place, rows in read_windows(table, scan, window_rows):
        yield place, rows, donors.by_text(scan.text_hashes[place])


def _joined(
    found: Iterator[tuple[slice, TableRows, RowLocations]], window_rows: int, most_rows: int
) -> Iterator[tuple[slice, TableRows, RowLocations]]:
    """Join windows that other caches have nearly all of.

    The few texts of each would make small batches, which take longer than full ones. A window that half of is lacking
    joins nothing. All this depends on the table and the caches alone, so that a run which carries on joins the same.
    """
    held: list[tuple[slice, TableRows, RowLocations]] = []
    lacking = 0
    for place, rows, donated in found:
        held.append((place, rows, donated))
        lacking += int((~donated.found).sum())
        if lacking >= window_rows // 2 or place.stop + window_rows - held[0][0].start > most_rows:
            yield _as_one(held)
            held, lacking = [], 0
    if held:
        yield _as_one(held)


def _as_one(parts: Sequence[tuple[slice, TableRows, RowLocations]]) -> tuple[slice, TableRows, RowLocations]:
    if len(parts) == 1:
        return parts[0]
    places, rows, donated = zip(*parts, strict=True)
    return slice(places[0].start, places[-1].stop), join_rows(rows), join_locations(donated)
