"""The pass over a table: window by window, each distinct token sequence through the encoder, rows into the cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..cache.errors import EncoderError
from ..cache.hashing import HASH_BYTES, hash_sequences
from ..cache.reader import open_any
from ..cache.writer import CacheWriter
from .batching import FirstRows, compose_batches
from .progress import Report, Step
from .survey import Survey, windows
from .table import Rows, Table

_FLOAT16_MAX = float(np.finfo(np.float16).max)


class TextEncoder(Protocol):
    """What the pass needs of an encoder; `headstart.stages.encoder.Encoder` is one."""

    def tokenize(self, texts: list[str]) -> tuple[list[npt.NDArray[np.int32]], npt.NDArray[np.bool_]]: ...

    def encode(self, sequences: list[npt.NDArray[np.int32]]) -> dict[str, npt.NDArray[np.float32]]: ...


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
    encode_seconds: float = 0.0
    """Spent inside the encoder."""

    @property
    def tokens_per_second(self) -> float | None:
        """The encoder's speed; None where this run encoded nothing."""
        return self.tokens_encoded / self.encode_seconds if self.tokens_encoded else None


def encode_table(
    table: Table,
    survey: Survey,
    encoder: TextEncoder,
    writer: CacheWriter,
    *,
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
        kept: Blocks that are written already.
        plan: ``window_rows`` and ``batch_tokens``. Batches are composed of what the table holds, never of what is
            left to do: so a run that carries on with the same table encodes the same batches, and gets the same bits.
            Blocks that were kept from before a row of the table changed agree to rounding (1e-5).
        report: Where progress goes.

    Raises:
        TableError: the table changed since it was surveyed.
        EncoderError: a feature is not finite, or does not fit in the stored dtype.
    """
    layout, counts = writer.layout, Counts(kept_blocks=len(kept))
    cache = open_any(writer.path)
    in_cache = {name: cache.features(name) for name in layout.widths}  # maps: they show what the writer wrote
    token_hashes = np.zeros((layout.rows, HASH_BYTES), np.uint8)
    first_rows = FirstRows(token_hashes)
    written = np.zeros(layout.blocks, bool)
    written[list(kept)] = True
    for place, rows in windows(table, survey, plan["window_rows"]):
        sequences, truncated = encoder.tokenize(rows.texts)
        _require_tokens(sequences, rows)
        token_hashes[place] = hash_sequences(sequences)
        sources = first_rows.add(place)  # (window,) for each row, the first row of the table with its tokens
        counts.tokens += sum(map(len, sequences))
        counts.truncated_rows += int(truncated.sum())

        window = np.arange(place.start, place.stop)
        own = np.flatnonzero(sources == window)  # the window's own distinct sequences
        counts.distinct_sequences += len(own)
        missing = ~written[window // layout.block_rows]
        have = written[sources // layout.block_rows]
        needed = np.zeros(len(window), bool)
        needed[sources[missing & ~have] - place.start] = True

        features = {name: np.empty((len(window), width), np.float32) for name, width in layout.widths.items()}
        lengths = np.array([len(sequences[row]) for row in own], np.int64)
        batches = [own[batch] for batch in compose_batches(lengths, plan["batch_tokens"])]
        batches = [batch for batch in batches if needed[batch].any()]
        for number, batch in enumerate(batches, 1):
            started = time.perf_counter()
            encoded = encoder.encode([sequences[row] for row in batch])
            counts.encode_seconds += time.perf_counter() - started
            counts.tokens_encoded += sum(len(sequences[row]) for row in batch)
            counts.sequences_encoded += len(batch)
            for name, values in encoded.items():
                _require_storable(name, values, batch, rows, layout.storage)
                features[name][batch] = values
            done = place.start + len(window) * number // len(batches)
            report(Step("encoding", done, layout.rows, "rows", counts.tokens_encoded))
        for name, values in features.items():
            values[~have] = values[sources[~have] - place.start]
            values[have] = in_cache[name][sources[have]]

        for block in np.unique(window[missing] // layout.block_rows):
            block_rows = layout.block_slice(int(block))
            inside = slice(block_rows.start - place.start, block_rows.stop - place.start)
            writer.write_block(
                int(block),
                features={name: values[inside] for name, values in features.items()},
                text_hashes=survey.text_hashes[block_rows],
                token_hashes=token_hashes[block_rows],
            )
            written[block] = True
        report(Step("encoding", place.stop, layout.rows, "rows", counts.tokens_encoded))
    return counts


def _require_tokens(sequences: list[npt.NDArray[np.int32]], rows: Rows) -> None:
    for row, sequence in enumerate(sequences):
        if not len(sequence):
            raise EncoderError(f"{rows.place(row)}: the encoder's tokenizer makes no tokens of this text; mend the row")


def _require_storable(
    name: str, values: npt.NDArray[np.float32], batch: npt.NDArray[np.int64], rows: Rows, storage: str
) -> None:
    """Stop at a feature that is not finite, or that the stored dtype would make infinite."""
    largest = np.abs(values).max(axis=1)  # (batch,), NaN where any value is
    if not np.isfinite(largest).all():
        place = rows.place(int(batch[np.argmin(np.isfinite(largest))]))
        raise EncoderError(f"{place}: the encoder's feature {name!r} is not finite; try --precision float32")
    if storage == "float16" and largest.max() > _FLOAT16_MAX:
        place = rows.place(int(batch[np.argmax(largest)]))
        raise EncoderError(
            f"{place}: the feature {name!r} has {largest.max():.6g}, too large for float16; use --storage float32"
        )
