"""The pass over a table: window by window, each distinct token sequence through the encoder, rows into the cache.

The next window is read and tokenized in one thread, and the last one written in another, while the encoder works.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...cache.errors import EncoderError, StorageError
from ...cache.hashing import hash_sequences
from ...cache.reader import Cache, open_any
from ...cache.writer import CacheWriter
from ..encoders.encoder import BatchReport, Encoder, encode_sequences
from ..encoders.memory import MemoryFullError
from ..prefetch import BackgroundThread, prefetch
from ..progress import Report, Step
from ..settings import ForwardMode
from ..tables.scan import TableScan
from ..tables.table import Table, TableRows
from ..types import Features, Indices, Mask
from .reuse import ReusableCaches
from .row_index import FirstOccurrences
from .windows import Window, tokenized_windows

_FLOAT16_MAX = float(np.finfo(np.float16).max)
_COUNT_ROWS = 1 << 20


@dataclasses.dataclass
class Counts:
    """What the pass counted. Those of encoding are of this run alone, not of the run that it carried on from."""

    tokens: int = 0
    """In all rows, copies included."""
    truncated_rows: int = 0
    distinct_sequences: int = 0
    tokens_encoded: int = 0
    sequences_encoded: int = 0
    kept_blocks: int = 0
    """Written by an earlier run."""
    reused_rows: int = 0
    """Found in other caches."""
    halved_batches: int = 0
    """Which took more memory than there was, and were encoded in halves."""
    encode_seconds: float = 0.0
    """Spent inside the encoder."""

    @property
    def tokens_per_second(self) -> float | None:
        """The encoder's speed; None where this run encoded nothing."""
        return self.tokens_encoded / self.encode_seconds if self.tokens_encoded else None


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """What the encoder made of some rows of a window.

    Attributes:
        features: By name, (sequences, width) float32.
        places: (window,) where in them each row of the window stands; -1 for the others.
    """

    features: dict[str, Features]
    places: Indices


@dataclasses.dataclass(frozen=True)
class _Homes:
    """Where the features of some rows are found.

    Attributes:
        sources: (rows,) for each the first row of the table with its tokens.
        in_file: (rows,) bool, whether that one is in the new file already.
        start: The first row of the window that the others are in.
    """

    sources: Indices
    in_file: Mask
    start: int


def encode_table(
    table: Table,
    scan: TableScan,
    encoder: Encoder,
    writer: CacheWriter,
    *,
    donors: ReusableCaches,
    kept: set[int],
    plan: Mapping[str, Any],
    report: Report,
) -> Counts:
    """Write every block of the unfinished cache that is not kept.

    Args:
        table: The rows.
        survey: What its first reading found.
        encoder: Reads token sequences.
        writer: Writes blocks.
        donors: Caches whose rows are taken over.
        kept: Blocks that are written already.
        plan: ``window_rows``, ``batch_tokens`` and ``path``. Batches are composed of what the table and the donors
            hold, never of what is left to do: so a run that carries on with the same ones encodes the same batches, and
            gets the same bits. Blocks that were kept from before a row of the table changed agree to rounding (1e-5).
        report: Where progress goes.

    Raises:
        TableError: the table changed since it was surveyed.
        EncoderError: a feature is not finite, or does not fit in the stored dtype.
        StorageError: the memory is full with one text alone.
    """
    work, halved = _Pass(encoder, writer, donors, kept, plan, report), encoder.halved_batches
    with work.behind:
        coming = tokenized_windows(
            table,
            scan,
            encoder,
            donors,
            layout=work.layout,
            window_rows=plan["window_rows"],
            kept=work.written.copy(),
        )
        for window in prefetch(coming):
            work.take(window)
            report(Step("encoding", window.place.stop, scan.rows, "rows", work.counts.tokens_encoded))
    work.counts.halved_batches = encoder.halved_batches - halved
    for start in range(0, scan.rows, _COUNT_ROWS):
        rows = slice(start, start + _COUNT_ROWS)
        work.counts.tokens += int(work.cache.lengths[rows].sum(dtype=np.int64))
        work.counts.truncated_rows += int(work.cache.truncated[rows].sum(dtype=np.int64))
    return work.counts


class _Pass:
    """One pass, and what it remembers from window to window."""

    def __init__(
        self,
        encoder: Encoder,
        writer: CacheWriter,
        donors: ReusableCaches,
        kept: set[int],
        plan: Mapping[str, Any],
        report: Report,
    ) -> None:
        self.encoder, self.writer, self.donors, self.plan, self.report = encoder, writer, donors, plan, report
        self.layout, self.counts, self.behind = writer.layout, Counts(kept_blocks=len(kept)), BackgroundThread()
        self.cache: Cache = open_any(writer.path)  # maps: they show what the writer wrote
        self.first_rows = FirstOccurrences(self.cache.token_hashes)
        self.written = np.zeros(self.layout.blocks, bool)
        self.written[list(kept)] = True

    def take(self, window: Window) -> None:
        """Encode what nobody has, and hand the window's missing blocks to the writer."""
        blocks = self.layout.blocks_of(window.place)
        place, missing_blocks = window.place, blocks[~self.written[blocks]]
        if len(missing_blocks):
            self._write_row_metadata(window, missing_blocks)
        sources = self.first_rows.add(place)  # (window,) for each row, the first row of the table with its tokens
        numbers = np.arange(place.start, place.stop)
        self.counts.distinct_sequences += int((sources == numbers).sum())
        if not len(missing_blocks):
            return
        own = np.flatnonzero(sources == numbers)  # the window's own distinct sequences
        asked = own[~window.donated.found[own]]
        by_tokens = self.donors.by_tokens(self.cache.token_hashes[place][asked])
        window.donated.donors[asked], window.donated.rows[asked] = by_tokens.donors, by_tokens.rows
        self.counts.reused_rows += int(window.donated.found.sum())
        in_file = self.written[sources // self.layout.block_rows]
        missing = ~self.written[numbers // self.layout.block_rows]
        needed = np.zeros(len(window), bool)
        needed[sources[missing & ~in_file] - place.start] = True
        encoded = self._encoded(window, own[~window.donated.found[own]], needed)
        self.behind.wait()  # what earlier windows wrote can be read from now on
        for block in missing_blocks:
            rows, inside = self.layout.block_slice(int(block)), self._inside(window, int(block))
            homes = _Homes(sources[inside], in_file[inside], window.place.start)
            features = {name: self._gathered(name, window, homes, encoded) for name in encoded.features}
            for name, values in features.items():
                _require_storable(name, values, np.arange(inside.start, inside.stop), window.rows, self.layout.storage)
            write = functools.partial(
                self.writer.write_block, int(block), features=features, **self.cache.row_metadata(rows)
            )
            self.behind.run(write)
            self.written[block] = True

    def _gathered(self, name: str, window: Window, homes: _Homes, encoded: _Encoded) -> Features:
        """One feature of some rows, (rows, width) float32, from wherever each of them stands."""
        values = np.empty((len(homes.sources), self.layout.widths[name]), np.float32)
        values[homes.in_file] = self.cache.features(name)[homes.sources[homes.in_file]]
        rows = np.flatnonzero(~homes.in_file)
        sources = homes.sources[rows] - homes.start
        donors = window.donated.donors[sources]
        for number, donor in enumerate(self.donors.caches):
            given = donors == number
            values[rows[given]] = donor.features(name)[window.donated.rows[sources[given]]]
        new = donors < 0
        values[rows[new]] = encoded.features[name][encoded.places[sources[new]]]
        return values

    def _inside(self, window: Window, block: int) -> slice:
        """Where a block's rows stand in their window."""
        rows, start = self.layout.block_slice(block), window.place.start
        return slice(rows.start - start, rows.stop - start)

    def _write_row_metadata(self, window: Window, blocks: Indices) -> None:
        """Write what is known of the rows of some blocks before they are encoded: so it need not be kept in memory."""
        token_hashes = np.empty((len(window), self.cache.token_hashes.shape[1]), np.uint8)
        lengths, truncated = np.empty(len(window), np.int32), np.empty(len(window), np.uint8)
        token_hashes[window.tokenized] = hash_sequences(window.sequences)
        lengths[window.tokenized] = [len(sequence) for sequence in window.sequences]
        truncated[window.tokenized] = window.truncated
        for number, donor in enumerate(self.donors.caches):
            given = window.donated.donors == number
            rows = window.donated.rows[given]
            token_hashes[given], lengths[given], truncated[given] = (
                donor.token_hashes[rows],
                donor.lengths[rows],
                donor.truncated[rows],
            )
        for block in blocks:
            inside = self._inside(window, int(block))
            self.writer.write_row_metadata(
                window.place.start + inside.start,
                token_hashes=token_hashes[inside],
                lengths=lengths[inside],
                truncated=truncated[inside],
            )

    def _encoded(self, window: Window, rows: Indices, needed: Mask) -> _Encoded:
        """Encode rows of a window, in batches that depend on the rows alone; those with nothing needed are left out."""
        places = np.full(len(window), -1, np.int64)
        places[rows] = np.arange(len(rows))
        sequences = [window.sequences[at] for at in np.searchsorted(window.tokenized, rows)]

        def take(batch: BatchReport) -> None:
            self.counts.encode_seconds += batch.seconds
            self.counts.tokens_encoded += batch.tokens
            self.counts.sequences_encoded += len(batch.sequences)
            for name, values in batch.features.items():
                _require_storable(name, values, rows[batch.sequences], window.rows, self.layout.storage)
            done = window.place.start + len(window) * batch.number // batch.batches
            self.report(Step("encoding", done, self.layout.rows, "rows", self.counts.tokens_encoded))

        try:
            features = encode_sequences(
                self.encoder,
                sequences,
                distinct=True,
                needed=needed[rows],
                batch_tokens=self.plan["batch_tokens"],
                path=ForwardMode(self.plan["path"]),
                on_batch=take,
            )
        except MemoryFullError as error:
            raise StorageError(
                f"{window.rows.place(int(rows[error.sequence]))}: the memory is full with this text alone, of "
                f"{len(sequences[error.sequence]):,} tokens; free some, or lower `max_length`"
            ) from error
        return _Encoded(features, places)


def _require_storable(name: str, values: Features, batch: Indices, rows: TableRows, storage: str) -> None:
    """Stop at a feature that is not finite, or that the stored dtype would make infinite."""
    largest = np.abs(values).max(axis=1)  # (batch,), NaN where any value is
    if not np.isfinite(largest).all():
        place = rows.place(int(batch[np.argmin(np.isfinite(largest))]))
        raise EncoderError(f"{place}: the encoder's feature {name!r} is not finite; in half precision, try float32")
    if storage == "float16" and largest.max() > _FLOAT16_MAX:
        place = rows.place(int(batch[np.argmax(largest)]))
        raise EncoderError(
            f"{place}: the feature {name!r} has {largest.max():.6g}, too large for float16; use `storage=float32`"
        )
