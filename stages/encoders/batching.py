"""Composes batches of token sequences: of similar length, within a number of tokens. Plain arrays only."""

from __future__ import annotations

import bisect

import numpy as np

from ..types import Indices

_FEW = 8  # with more batches than this, the last one's share of the time is small, whichever core takes it
_STEP = 64  # sizes of few batches are multiples of this, so that a run meets few sizes


def compose_batches(lengths: Indices, batch_tokens: int, *, padded: bool) -> list[Indices]:
    """Group sequences of similar length, the longest first, so that memory peaks at the start.

    Args:
        lengths: (sequences,) int64, tokens in each.
        batch_tokens: Most tokens in a batch. A sequence longer than this has a batch of its own.
        padded: Count a batch's tokens as sequences x the longest. Otherwise a batch is filled up with the longest
            sequences that fit, so nearly all have ``batch_tokens``, or, of few batches, an even share of all tokens.

    Returns:
        Indices of the sequences in each batch, the longest first. Every sequence is in one batch.
    """
    order = np.argsort(-lengths, kind="stable")
    if padded:
        return _padded_batches(order, lengths, batch_tokens)
    tokens = _even_share(int(lengths.sum()), batch_tokens)
    left: dict[int, list[int]] = {}  # by length; the last is taken first
    for number in order[::-1].tolist():
        left.setdefault(int(lengths[number]), []).append(number)
    sizes, batches = list(left), []  # ascending
    while sizes:
        batch, room = [], max(tokens, sizes[-1])
        while place := bisect.bisect_right(sizes, room):
            size = sizes[place - 1]
            batch.append(left[size].pop())
            room -= size
            if not left[size]:
                del sizes[place - 1]
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
