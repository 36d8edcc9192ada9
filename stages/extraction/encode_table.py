"""The pass over a table: window by window, each distinct token sequence goes through the encoder once.

The encoder goes from one window to the next without a pause. While it works on one, a thread reads and tokenizes a
later window, another prepares the next (`_Pass.prepared`), and a third collects the features of the last and writes
them (`_Pass.write`).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator

import numpy as np

from ...cache.errors import EncoderError, StorageError
from ...cache.hashing import hash_sequences
from ...cache.writer import CacheWriter
from ..encoders.encoder import BatchReport, Encoder, EncoderWork, UnknownTokens, encode_in_turn
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
    encode_seconds: float = 0.0  # in which batches were under way


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
    halved_before, state = encoder.backend.halved_batches, _Pass(unfinished, writer, encoder, reusable, report)
    tokenized = prefetch(tokenized_windows(table, unfinished, encoder, reusable))
    prepared = prefetch(state.prepared(tokenized))
    with state.background, contextlib.closing(tokenized), contextlib.closing(prepared):
        state.encode(prepared)
    if note := state.unknown.note():
        report(Note(note))
    counts, cache = state.counts, unfinished.cache
    counts.halved_batches = encoder.backend.halved_batches - halved_before
    counts.tokens = int(cache.lengths.sum(dtype=np.int64))
    counts.truncated_rows = int(cache.truncated.sum(dtype=np.int64))
    sequences = encoder.long_texts.count(cache.lengths)
    counts.sequences, counts.split_rows = int(sequences.sum()), int((sequences > 1).sum())
    return counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A window for which everything is there but the features that the encoder makes."""

    window: Window
    blocks: Indices  # to write
    sources: RowLocations  # (rows,) where each row's features come from, as `_Pass._sources` says
    positions: Indices  # in the window, of the sequences to encode
    work: EncoderWork  # which encodes these
    detail: str  # of the progress, up to this window


class _Pass:
    """The state of one pass: what is written, and where each token sequence first occurs.

    Three threads work on it. `prepared` runs ahead of `encode`, which alone counts what is encoded and reports it;
    `write` runs behind, in the thread ``background``. Windows go through each of them in order.
    """

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
        self.unknown = UnknownTokens(0, 0)
        self.split = self.chunks = 0  # texts of several chunks in the windows that are prepared, and these
        self.first_occurrences = RowIndex(self.cache.token_hashes)
        self.in_file = np.zeros(self.layout.blocks, bool)  # when all windows that are prepared are written
        self.in_file[list(unfinished.kept)] = True

    def prepared(self, windows: Iterable[Window]) -> Iterator[_Prepared]:
        """Prepare each window: write its rows' metadata, find out what it needs, and compose its batches."""
        for window in windows:
            self.unknown += self.encoder.count_unknown(window.sequences)
            yield self._prepare(window)

    def encode(self, windows: Iterable[_Prepared]) -> None:
        """Encode what each prepared window needs, and hand it to the background thread."""
        begun: collections.deque[_Prepared] = collections.deque()

        def works() -> Iterator[EncoderWork]:
            for window in windows:
                begun.append(window)
                yield window.work

        with contextlib.closing(encode_in_turn(self.encoder, works())) as done:
            try:
                for _ in done:
                    window = begun.popleft()
                    self.background.wait()  # so at most one window waits to be written
                    self.background.run(functools.partial(self.write, window))
                    self._step(window.window.span.stop, window.detail)
            except MemoryFullError as error:
                failed = begun[0]
                row = int(failed.positions[error.sequence])
                tokens = int(self.cache.lengths[failed.window.span.start + row])
                tokens = min(tokens, self.cache.identity.max_length)  # of the longest chunk
                raise StorageError(
                    f"{failed.window.rows.place(row)}: the memory is full with this text alone, of {tokens:,} tokens; "
                    "free some, or lower `max_length`"
                ) from error

    def write(self, prepared: _Prepared) -> None:
        """Collect the features of a window's rows, and write its blocks. The windows before it are in the file."""
        start, encoded = prepared.window.span.start, prepared.work.result()
        for block in prepared.blocks.tolist():
            block_rows = self.layout.block_slice(block)
            inside = slice(block_rows.start - start, block_rows.stop - start)
            features = {name: self._gather(name, prepared, inside, values) for name, values in encoded.items()}
            self.writer.write_block(block, features=features, **self.cache.row_metadata(block_rows))

    def _prepare(self, window: Window) -> _Prepared:
        blocks = self.layout.blocks_of(window.span)
        blocks = blocks[~self.in_file[blocks]]
        if len(blocks):
            self._write_row_metadata(window, blocks)
        counts = self.encoder.long_texts.count(np.array([len(sequence) for sequence in window.sequences], np.int64))
        self.split, self.chunks = self.split + int((counts > 1).sum()), self.chunks + int(counts[counts > 1].sum())
        detail = f"{self.split:,} texts in {self.chunks:,} chunks" if self.split else ""
        first_rows = self.first_occurrences.add_first(window.span)
        own = np.flatnonzero(first_rows == np.arange(window.span.start, window.span.stop))
        self.counts.distinct_sequences += len(own)
        sources, positions, needed = window.reused, np.empty(0, np.int64), np.empty(0, bool)
        if len(blocks):
            sources, positions, needed = self._sources(window, first_rows, own)
            self.in_file[blocks] = True
        work = EncoderWork(
            self.encoder,
            [window.sequences[place] for place in np.searchsorted(window.tokenized, positions)],
            distinct=True,
            needed=needed,
            batch_tokens=self.cache.plan["batch_tokens"],
            path=ForwardMode(self.cache.plan["path"]),
            on_batch=functools.partial(self._count, window, positions, detail),
        )
        return _Prepared(window=window, blocks=blocks, sources=sources, positions=positions, work=work, detail=detail)

    def _sources(self, window: Window, first_rows: Indices, own: Indices) -> tuple[RowLocations, Indices, Mask]:
        """Find where the features of a window's rows come from.

        Args:
            window: The window.
            first_rows: (rows,) the first row of the table with each row's sequence.
            own: Positions in the window of the sequences that occur here first, ascending.

        Returns:
            Of each row: a reusable cache, or, as the cache after these, the file that is written, or (-1) this window's
            work, where the row is a number among the sequences to encode. Then the positions of these sequences,
            ascending, and which of them a block to write needs. The others fill up batches.
        """
        lacking, sources = own[window.reused["cache"][own] < 0], window.reused.copy()
        sources[lacking] = find_rows(self.reusable.sequences, self.cache.token_hashes[window.span][lacking])
        self.counts.reused_rows += int((sources["cache"] >= 0).sum())
        positions = lacking[sources["cache"][lacking] < 0]
        sources["row"][positions] = np.arange(len(positions))
        in_file = self.in_file[first_rows // self.layout.block_rows]
        sources[~in_file] = sources[first_rows[~in_file] - window.span.start]  # equal sequences have one source
        sources["cache"][in_file], sources["row"][in_file] = len(self.reusable.caches), first_rows[in_file]
        needed = np.zeros(len(window), bool)
        to_write = ~self.in_file[np.arange(window.span.start, window.span.stop) // self.layout.block_rows]
        needed[first_rows[to_write & ~in_file] - window.span.start] = True
        return sources, positions, needed[positions]

    def _count(self, window: Window, positions: Indices, detail: str, batch: BatchReport) -> None:
        """Count and check one encoded batch of a window's sequences."""
        self.counts.encode_seconds += batch.seconds
        self.counts.tokens_encoded += batch.tokens
        self.counts.sequences_encoded += len(batch.sequences)
        for name, values in batch.features.items():
            _require_storable(name, values, positions[batch.sequences], window.rows, self.layout.storage)
        self._step(window.span.start + len(window) * batch.number // batch.batches, detail)

    def _step(self, rows: int, detail: str) -> None:
        """Report how many rows are done."""
        self.report(Step("encoding", rows, self.layout.rows, "rows", self.counts.tokens_encoded, detail))

    def _gather(self, name: str, prepared: _Prepared, inside: slice, encoded: Features) -> Features:
        """Collect one feature of a window's rows, (rows, width), from other caches, the file and the encoder.

        Those of the encoder were checked when they came. What is made of the chunks of a text is no larger than these.
        """
        sources, window = prepared.sources[inside], prepared.window
        gathered = np.empty((len(sources), self.layout.widths[name]), np.float32)
        for cache, positions, rows in by_cache([*self.reusable.caches, self.cache], sources):
            copied = gathered[positions] = cache.features(name)[rows]
            _require_storable(name, copied, positions + inside.start, window.rows, self.layout.storage)
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
