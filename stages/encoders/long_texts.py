"""What is done with a text of more tokens than the encoder reads: it is cut, or read in chunks.

This is the one place where a text becomes its sequences, and their vectors become the text's. Everyone else knows a
text as one row of token ids: its sequence, or its chunks one after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from ...cache.errors import EncoderError, SettingsError
from ..settings import ChunkPooling, Long
from ..types import Features, Float64Array, Indices, Mask, TokenIds
from .tokenizer import Tokenizer

_LEAST_LENGTH = 1e-12  # of a vector that is divided by its length, as in torch's `normalize`


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongTextSettings:
    """What is done with a long text."""

    long: Long = Long.CUT
    overlap: int = 0  # tokens of the text that a chunk shares with the next
    pooling: ChunkPooling | None = None  # of chunks


class LongTexts:
    """Makes rows of token ids, and rows' vectors, as the settings say.

    A chunk holds the special tokens, the prefix's tokens, and a window of the text's. All chunks of a text but the last
    have ``max_length`` tokens, so a row says where each begins.
    """

    def __init__(
        self,
        settings: LongTextSettings,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        prefix: str,
        normalized: Collection[str],  # the features that the encoder divides by their lengths, at the end
    ) -> None:
        """Prepare for one encoder.

        Raises:
            SettingsError: special tokens, prefix and overlap leave no room for a text.
        """
        self._settings, self._max_length, self._normalized = settings, max_length, normalized
        # Many tokenizers join the spaces at the prefix's end to the word after them.
        self._prefix = np.array(tokenizer.plain(prefix.rstrip()), np.int32)
        self._special = tokenizer.special(pairs=False)
        self._overhead = self._special + len(self._prefix)  # tokens of a sequence that are not the text's own
        self._room = max_length - self._overhead
        if self.reads_all and self._room - settings.overlap < (2 if settings.long is Long.HEAD_TAIL else 1):
            overlap = f", `overlap` {settings.overlap}" if settings.overlap else ""
            raise SettingsError(
                f"`max_length` is {max_length}: special tokens and the prefix take {self._overhead} tokens{overlap}, "
                "which leaves no room for a text; choose more"
            )

    @property
    def reads_all(self) -> bool:
        """Whether all tokens of a text are needed; otherwise the tokenizer cuts it."""
        return self._settings.long is not Long.CUT

    def row(self, encoding: tokenizers.Encoding) -> tuple[TokenIds, bool]:
        """The row of a text of which all tokens are given, and whether it lacks some of them.

        The first chunk is the sequence that an encoder reads which cuts at the right.

        Raises:
            EncoderError: special tokens stand elsewhere than before and after the text.
        """
        ids = np.array(encoding.ids, np.int32)
        if len(ids) <= self._max_length:
            return ids, False
        own = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
        before, text, after = ids[: own[0]], ids[own[0] : own[-1] + 1], ids[own[-1] + 1 :]
        if len(before) + len(after) != self._special:
            raise EncoderError("the encoder's tokenizer puts special tokens inside of a text; use `long=cut`")
        start, text = text[: len(self._prefix)], text[len(self._prefix) :]
        if self._settings.long is Long.HEAD_TAIL:
            tail = self._room // 2
            return np.concatenate([before, start, text[: self._room - tail], text[-tail:], after]), True
        parts = []
        for place in range(0, len(text) - self._settings.overlap, self._room - self._settings.overlap):
            parts += [before, self._prefix if place else start, text[place : place + self._room], after]
        return np.concatenate(parts), False

    def count(self, lengths: npt.NDArray[np.signedinteger[Any]]) -> Indices:
        """How many sequences rows of so many tokens have: (rows,) int64."""
        if self._settings.long is not Long.CHUNKS:
            return np.ones(len(lengths), np.int64)
        counts: Indices = np.maximum(1, -(-lengths.astype(np.int64) // self._max_length))
        return counts

    def split(self, rows: Sequence[TokenIds]) -> tuple[list[TokenIds], Indices]:
        """The sequences of some rows, in order, and how many each row has: (rows,) int64."""
        counts, length = self.count(np.array([len(row) for row in rows], np.int64)), self._max_length
        sequences = [
            row if count == 1 else row[part * length : (part + 1) * length]
            for row, count in zip(rows, counts.tolist(), strict=True)
            for part in range(count)
        ]
        return sequences, counts

    def join(
        self,
        features: Mapping[str, Features],
        sequences: Sequence[TokenIds],
        counts: Indices,
        *,
        places: Indices | None = None,
        needed: Mask | None = None,
    ) -> dict[str, Features]:
        """The features of rows, from those of their sequences. A row of one sequence has its vector, bit for bit.

        Args:
            features: By name: (sequences, width) float32 each.
            sequences: As `split` gives them, like ``counts``.
            counts: (rows,) how many sequences each row has.
            places: (sequences,) where in the arrays each sequence's vector is; None for where it is in the list.
            needed: (rows,) which rows are needed, others hold arbitrary values; None for all.

        Returns:
            By name: (rows, width) float32 each.
        """
        starts = np.cumsum(counts) - counts
        places = np.arange(len(sequences)) if places is None else places
        several = counts > 1 if needed is None else (counts > 1) & needed
        joined = {name: values[places[starts]] for name, values in features.items()}
        for row in np.flatnonzero(several).tolist():
            chunks = slice(starts[row], starts[row] + counts[row])
            weights = np.array([len(chunk) - self._overhead for chunk in sequences[chunks]], np.float64)
            for name, values in features.items():
                joined[name][row] = self._pool(values[places[chunks]], weights, normalized=name in self._normalized)
        return joined

    def _pool(self, vectors: Features, weights: Float64Array, *, normalized: bool) -> Float64Array:
        """One vector of (chunks, width): (width,). Vectors of length 1 are pooled as such, and the result made so."""
        if self._settings.pooling is ChunkPooling.MAX:
            pooled = vectors.max(axis=0).astype(np.float64)
        else:
            pooled = (vectors * (weights / weights.sum())[:, None]).sum(axis=0)
        length = max(float(np.linalg.norm(pooled)), _LEAST_LENGTH) if normalized else 1.0
        result: Float64Array = pooled / length
        return result
