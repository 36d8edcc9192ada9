"""Attention over sequences that lie end to end in one matrix, each attending to itself alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from .linear import padded_rows

Tensor = torch.Tensor

_KEYS = 16
"""Attention's small products take up to a third less time where they are over a multiple of so many keys."""
_MOST_ADDED = 11
"""Adding more keys than this takes longer than it saves; ``bench/attention.py`` shows both."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Some sequences of equal length that lie end to end.

    Attributes:
        tokens: Their rows.
        sequences: Their places in the batch.
        length: Of each.
        mask: (length, keys), added to the scores where each sequence is given more keys than its own, which this makes
            minus infinity; None where it is not.
    """

    tokens: slice
    sequences: slice
    length: int
    mask: Tensor | None

    @property
    def count(self) -> int:
        return int(self.sequences.stop - self.sequences.start)

    @property
    def keys(self) -> int:
        """How many each sequence is given."""
        return self.length if self.mask is None else int(self.mask.shape[1])


def group_sequences(lengths: Sequence[int], dtype: torch.dtype) -> list[Group]:
    """Find the runs of equal length.

    Args:
        lengths: Tokens in each sequence, in the order in which they lie.
        dtype: That queries, keys and values will have.
    """
    groups, start, at = [], 0, 0
    rows = padded_rows(sum(lengths))
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or lengths[end] != lengths[start]:
            length, tokens = lengths[start], (end - start) * lengths[start]
            more = -length % _KEYS
            mask = None
            if 0 < more <= _MOST_ADDED and at + tokens + more <= rows:
                mask = torch.zeros(length + more, dtype=dtype)
                mask[length:] = -torch.inf
                mask = mask.expand(length, -1)
            groups.append(Group(slice(at, at + tokens), slice(start, end), length, mask))
            start, at = end, at + tokens
    return groups


def attend(found: Tensor, group: Group, heads: int) -> Tensor:
    """Let a group's tokens attend to those of their own sequence.

    Where the group has a mask, a sequence's keys and values run on over the first tokens of the next one, or over the
    rows past the last: no copy is made to have more of them. What they hold must be finite, since it is multiplied by
    zero.

    Args:
        found: (tokens, 3 x width), contiguous: queries, keys and values.
        group: Some of the sequences.
        heads: How many there are.

    Returns:
        (sequences, heads, length, width / heads), what attention gives each token.
    """
    row = found.shape[1]  # numbers in it: from one token to the next
    per_head = row // (3 * heads)
    strides, start = (group.length * row, per_head, row, 1), found.storage_offset() + group.tokens.start * row
    query, key, value = (
        found.as_strided((group.count, heads, tokens, per_head), strides, start + part * row // 3)
        for part, tokens in enumerate((group.length, *2 * (group.keys,)))
    )
    attended: Tensor = scaled_dot_product_attention(query, key, value, attn_mask=group.mask)
    return attended
