"""Attention over sequences that lie end to end in one matrix; each attends to itself alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from .linear import padded_rows

Tensor = torch.Tensor
# Attention's small products take up to a third less time where the number of keys is a multiple of `_KEYS`. To add more
# than `_MOST_ADDED` keys for that takes longer than it saves; ``bench/attention.py`` shows both.
_KEYS, _MOST_ADDED = 16, 11


@dataclasses.dataclass(frozen=True)
class Group:
    """Sequences of equal length that lie end to end."""

    tokens: slice  # their rows in the matrix
    sequences: slice  # their places in the batch
    count: int  # of sequences
    length: int  # tokens in each
    mask: Tensor | None
    """(length, keys), added to the scores: minus infinity for keys beyond the sequence's own. None for no others."""

    @property
    def keys(self) -> int:
        """How many keys each sequence is given."""
        return self.length if self.mask is None else int(self.mask.shape[1])


def group_sequences(lengths: Sequence[int], dtype: torch.dtype) -> list[Group]:
    """Find the runs of equal length, from each sequence's length; ``dtype`` is that of queries, keys and values."""
    groups, first, row = [], 0, 0
    rows = padded_rows(sum(lengths))
    for length, equal in itertools.groupby(lengths):
        count, added, mask = len(list(equal)), -length % _KEYS, None
        end, last = first + count, row + count * length
        if 0 < added <= _MOST_ADDED and last + added <= rows:
            mask = torch.zeros(length + added, dtype=dtype)
            mask[length:] = -torch.inf
            mask = mask.expand(length, -1)
        groups.append(Group(slice(row, last), slice(first, end), count, length, mask))
        first, row = end, last
    return groups


def attend(query_key_value: Tensor, group: Group, heads: int) -> Tensor:
    """Scaled dot-product attention within each sequence of a group.

    Where the group has a mask, a sequence's keys and values run on over the first tokens of the next sequence, or over
    the rows past the last one: so the additional keys need no copy. Their values must be finite, since they are
    multiplied by zero.

    Takes (tokens, 3 x width), contiguous: queries, keys and values. Returns (sequences, heads, length, width / heads).
    """
    row = query_key_value.shape[1]  # numbers from one token to the next
    per_head, offset = row // (3 * heads), query_key_value.storage_offset() + group.tokens.start * row
    strides = (group.length * row, per_head, row, 1)
    query, key, value = (
        query_key_value.as_strided((group.count, heads, tokens, per_head), strides, offset + part * row // 3)
        for part, tokens in enumerate((group.length, *2 * (group.keys,)))
    )
    attention: Tensor = scaled_dot_product_attention(query, key, value, attn_mask=group.mask)
    return attention
