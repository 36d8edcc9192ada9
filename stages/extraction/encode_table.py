"""The pass over a table: window by window, each distinct token sequence goes through the encoder once.

One thread reads and tokenizes the next window, and another one writes the last window, while the encoder works.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from ...cache.errors import EncoderError, StorageError
from ...cache.hashing import hash_sequences
from ...cache.writer import CacheWriter
from ..encoders.encoder import BatchReport, Encoder, UnknownTokens, encode_sequences
from ..encoders.memory import MemoryFullError
from ..prefetch import BackgroundThread, prefetch
from ..progress import Note, Report, Step
from ..settings import ForwardMode
from ..tables.table import Table, TableRows
from ..types import Features, Indices, Mask
from .resume import UnfinishedCache
from .reuse import ReusableCaches, RowLocations, by_cache, find_rows
from .row_index import RowIndex
from .windows import Window, tokenized_windows

_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclasses.dataclass
class Counts:
    """What the pass counted. Counts of encoding leave out an earlier run that this run resumed."""

    tokens: int = 0  # in all rows, copies included
    sequences: int = 0  # in all rows, copies included: one in each, or the chunks of a long text
    truncated_rows: int = 0
    split_rows: int = 0  # rows of several chunks
    distinct_sequences: int = 0
    tokens_encoded: int = 0
    sequences_encoded: int = 0
    kept_blocks: int = 0  # blocks that an earlier run wrote
    reused_rows: int = 0  # rows that were copied from other caches
    halved_batches: int = 0  # batches that did not fit in memory, and were encoded in halves
    encode_seconds: float = 0.0  # spent waiting for the encoder


def encode_table(
    table: Table,
    unfinished: UnfinishedCache,
    writer: CacheWriter,
    encoder: Encoder,
    *,
    reusable: ReusableCaches,
    report: Report,
) -> Counts:
    """Write every block that an unfinished cache lacks.

    Batches depend on the table, the reusable caches and the cache's plan, never on what is left to do. So a run that
    resumes encodes the same batches as an undisturbed run, and gets the same bits. Blocks that were written before
    another row of the table changed agree to rounding (1e-5).

    Raises:
        TableError: the table changed since it was scanned.
        EncoderError: a text has no tokens, or a feature is not finite, or does not fit in the stored dtype.
        StorageError: one text alone does not fit in memory.
    """
    halved_before, unknown = encoder.backend.halved_batches, UnknownTokens(0, 0)
    state = _Pass(unfinished, writer, encoder, reusable, report)
    with state.background:
        for window in prefetch(tokenized_windows(table, unfinished, encoder, reusable)):
            state.add(window)
            unknown += encoder.count_unknown(window.sequences)
            state.step(window.span.stop)
    if note := unknown.note():
        report(Note(note))
    counts, cache = state.counts, unfinished.cache
    counts.halved_batches = encoder.backend.halved_batches - halved_before
    counts.tokens = int(cache.lengths.sum(dtype=np.int64))
    counts.truncated_rows = int(cache.truncated.sum(dtype=np.int64))
    sequences = encoder.long_texts.count(cache.lengths)
    counts.sequences, counts.split_rows = int(sequences.sum()), int((sequences > 1).sum())
    return counts


class _Pass:
    """The state of one pass: what is written, and where each token sequence first occurs."""

    def __init__(
        self,
        unfinished: UnfinishedCache,
        writer: CacheWriter,
        encoder: Encoder,
        reusable: ReusableCaches,
        report: Report,
    ) -> None:
        self.cache, self.writer, self.encoder, self.reusable = unfinished.cache, writer, encoder, reusable
        self.background, self.report = BackgroundThread(), report
        self.layout, self.counts = self.cache.layout, Counts(kept_blocks=len(unfinished.kept))
        self.split = self.chunks = 0  # texts of several chunks so far, and these
        self.first_occurrences = RowIndex(self.cache.token_hashes)
        self.written = np.zeros(self.layout.blocks, bool)
        self.written[list(unfinished.kept)] = True

    def add(self, window: Window) -> None:
        """Add the next window's sequences; encode what it needs, and hand its blocks to the background thread."""
        blocks = self.layout.blocks_of(window.span)
        blocks = blocks[~self.written[blocks]]
        if len(blocks):
            self._write_row_metadata(window, blocks)
        counts = self.encoder.long_texts.count(np.array([len(sequence) for sequence in window.sequences], np.int64))
        self.split, self.chunks = self.split + int((counts > 1).sum()), self.chunks + int(counts[counts > 1].sum())
        first_rows = self.first_occurrences.add_first(window.span)
        rows = np.arange(window.span.start, window.span.stop)
        own = np.flatnonzero(first_rows == rows)  # positions of the sequences that occur here first
        self.counts.distinct_sequences += len(own)
        if not len(blocks):
            return
        # Where each row's features come from: a reusable cache, the file that is written, or (-1) this window's work.
        lacking, sources = own[window.reused["cache"][own] < 0], window.reused.copy()
        sources[lacking] = find_rows(self.reusable.sequences, self.cache.token_hashes[window.span][lacking])
        self.counts.reused_rows += int((sources["cache"] >= 0).sum())
        positions = lacking[sources["cache"][lacking] < 0]  # ascending: of the sequences to encode
        sources["row"][positions] = np.arange(len(positions))
        in_file = self.written[first_rows // self.layout.block_rows]
        sources[~in_file] = sources[first_rows[~in_file] - window.span.start]  # equal sequences have one source
        sources["cache"][in_file], sources["row"][in_file] = len(self.reusable.caches), first_rows[in_file]
        needed = np.zeros(len(window), bool)
        to_write = ~self.written[rows // self.layout.block_rows]
        needed[first_rows[to_write & ~in_file] - window.span.start] = True
        encoded = self._encode(window, positions, needed[positions])
        self.background.wait()  # from now on the features of earlier windows can be read from the file
        for block in blocks.tolist():
            block_rows = self.layout.block_slice(block)
            inside = np.arange(block_rows.start, block_rows.stop) - window.span.start
            features = {name: self._gather(name, sources[inside], values) for name, values in encoded.items()}
            for name, values in features.items():
                _require_storable(name, values, inside, window.rows, self.layout.storage)
            metadata = self.cache.row_metadata(block_rows)
            self.background.run(functools.partial(self.writer.write_block, block, features=features, **metadata))
            self.written[block] = True

    def _encode(self, window: Window, positions: Indices, needed: Mask) -> dict[str, Features]:
        """Encode the sequences at some positions of a window. Those that no block to write needs fill up batches."""
        sequences = [window.sequences[place] for place in np.searchsorted(window.tokenized, positions)]
        try:
            return encode_sequences(
                self.encoder,
                sequences,
                distinct=True,
                needed=needed,
                batch_tokens=self.cache.plan["batch_tokens"],
                path=ForwardMode(self.cache.plan["path"]),
                on_batch=functools.partial(self._count, window, positions),
            )
        except MemoryFullError as error:
            place, row = window.rows.place(int(positions[error.sequence])), sequences[error.sequence]
            tokens = min(len(row), self.cache.identity.max_length)  # of the longest chunk
            raise StorageError(
                f"{place}: the memory is full with this text alone, of {tokens:,} tokens; free some, or lower "
                "`max_length`"
            ) from error

    def _count(self, window: Window, positions: Indices, batch: BatchReport) -> None:
        """Count and check one encoded batch of a window's sequences."""
        self.counts.encode_seconds += batch.seconds
        self.counts.tokens_encoded += batch.tokens
        self.counts.sequences_encoded += len(batch.sequences)
        for name, values in batch.features.items():
            _require_storable(name, values, positions[batch.sequences], window.rows, self.layout.storage)
        done = window.span.start + len(window) * batch.number // batch.batches
        self.step(done)

    def step(self, rows: int) -> None:
        """Report how many rows are done."""
        detail = f"{self.split:,} texts in {self.chunks:,} chunks" if self.split else ""
        self.report(Step("encoding", rows, self.layout.rows, "rows", self.counts.tokens_encoded, detail))

    def _gather(self, name: str, sources: RowLocations, encoded: Features) -> Features:
        """Collect one feature of some rows, (rows, width), from other caches, the file and the encoder."""
        gathered = np.empty((len(sources), self.layout.widths[name]), np.float32)
        for cache, positions, rows in by_cache([*self.reusable.caches, self.cache], sources):
            gathered[positions] = cache.features(name)[rows]
        new = sources["cache"] < 0
        gathered[new] = encoded[sources["row"][new]]
        return gathered

    def _write_row_metadata(self, window: Window, blocks: Indices) -> None:
        """Write the hashes and lengths of some blocks before their features, so that memory need not hold them."""
        token_hashes = np.empty((len(window), self.cache.token_hashes.shape[1]), np.uint8)
        lengths, truncated = np.empty(len(window), np.int32), np.empty(len(window), np.uint8)
        token_hashes[window.tokenized] = hash_sequences(window.sequences)
        lengths[window.tokenized] = [len(sequence) for sequence in window.sequences]
        truncated[window.tokenized] = window.truncated
        for cache, positions, rows in by_cache(self.reusable.caches, window.reused):
            token_hashes[positions] = cache.token_hashes[rows]
            lengths[positions], truncated[positions] = cache.lengths[rows], cache.truncated[rows]
        for block in blocks.tolist():
            rows_of_block = self.layout.block_slice(block)
            inside = slice(rows_of_block.start - window.span.start, rows_of_block.stop - window.span.start)
            self.writer.write_row_metadata(
                rows_of_block.start,
                token_hashes=token_hashes[inside],
                lengths=lengths[inside],
                truncated=truncated[inside],
            )


def _require_storable(name: str, values: Features, positions: Indices, rows: TableRows, storage: str) -> None:
    """Refuse a feature that is not finite, or that the stored dtype would make infinite."""
    largest = np.abs(values).max(axis=1)  # (rows,), NaN where any value is NaN
    if not np.isfinite(largest).all():
        place = rows.place(int(positions[np.argmin(np.isfinite(largest))]))
        raise EncoderError(f"{place}: the encoder's feature {name!r} is not finite; in half precision, try float32")
    if storage == "float16" and largest.max() > _FLOAT16_MAX:
        place = rows.place(int(positions[np.argmax(largest)]))
        raise EncoderError(
            f"{place}: the feature {name!r} has {largest.max():.6g}, too large for float16; use `storage=float32`"
        )
