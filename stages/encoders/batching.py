"""Composes batches of token sequences: of similar length, within a number of tokens. Plain arrays only."""

from __future__ import annotations

import numpy as np

from ..types import Indices

_FEW = 8  # with more batches than this, the last one's share of the time is small, whichever core takes it
_STEP = 64  # sizes of few batches are multiples of this, so that a run meets few sizes


def compose_batches(lengths: Indices, batch_tokens: int, *, padded: bool) -> list[Indices]:
    """Group sequences of similar length, the longest first, so that memory peaks at the start.

    Args:
        lengths: (sequences,) int64, tokens in each.
        batch_tokens: Most tokens in a batch. A sequence longer than this has a batch of its own.
        padded: Count a batch's tokens as sequences x the longest. Otherwise padding is not counted, and a batch is
            filled up with the longest sequences that fit. So nearly all batches have the same number of tokens:
            ``batch_tokens``, or, where there are few batches, an even share of all tokens.

    Returns:
        Indices of the sequences in each batch, the longest first. Every sequence is in one batch.
    """
    order = np.argsort(-lengths, kind="stable")
    if padded:
        return _padded_batches(order, lengths, batch_tokens)
    left, tokens = _Remaining(order, lengths), _even_share(int(lengths.sum()), batch_tokens)
    batches = []
    while (place := left.first(int(lengths.max(initial=0)))) is not None:
        batch, room = [left.take(place)], tokens - int(lengths[order[place]])
        while (place := left.first(room)) is not None:
            batch.append(left.take(place))
            room -= int(lengths[order[place]])
        batches.append(np.array(batch, np.int64))
    return batches


def _even_share(tokens: int, most: int) -> int:
    """Tokens in a batch, at most ``most``. Few batches are 1, 2, 4 or 8 of one size: so all cores end together."""
    fewest = max(1, -(-tokens // most))
    if fewest > _FEW:
        return most
    batches = 1 << (fewest - 1).bit_length()
    return min(most, -(-tokens // (batches * _STEP)) * _STEP)


def _padded_batches(order: Indices, lengths: Indices, batch_tokens: int) -> list[Indices]:
    batches, start = [], 0
    while start < len(order):
        count = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + count])
        start += count
    return batches


class _Remaining:
    """Sequences in order of falling length. Any can be taken out, and the longest that fits can be found."""

    def __init__(self, order: Indices, lengths: Indices) -> None:
        self._order = order
        self._falling = -lengths[order]  # rising, as searchsorted wants it
        self._next = list(range(len(order) + 1))  # union-find: from each place to the next that is not taken

    def first(self, most: int) -> int | None:
        """The place of the longest sequence of at most ``most`` tokens."""
        place = int(np.searchsorted(self._falling, -most)) if most > 0 else len(self._order)
        root = place
        while self._next[root] != root:
            root = self._next[root]
        while self._next[place] != root:
            self._next[place], place = root, self._next[place]
        return root if root < len(self._order) else None

    def take(self, place: int) -> int:
        """Take out the sequence at a place, and return its number."""
        self._next[place] = place + 1
        return int(self._order[place])
