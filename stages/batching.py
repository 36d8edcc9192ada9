"""How rows become batches: distinct token sequences, grouped by length under a token budget. Plain arrays only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..cache.hashing import Hashes, hash_keys

Indices = npt.NDArray[np.int64]


def compose_batches(lengths: Indices, batch_tokens: int) -> list[Indices]:
    """Group sequences of similar length, the longest first, so that padding is little and memory peaks at once.

    Args:
        lengths: (sequences,) int64, tokens in each.
        batch_tokens: Most tokens in a batch, counted as padded: sequences x the longest. A sequence longer than
            this has a batch of its own.

    Returns:
        Index arrays that together hold every sequence once. They depend on the arguments alone.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        count = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + count])
        start += count
    return batches


class FirstRows:
    """Remembers, for each token sequence, the first row of the table that has it.

    Grows by 16 bytes a distinct sequence: the first 8 bytes of its hash, sorted, and the row. The other 8 bytes
    are looked up in the hashes of all rows, which stand in the cache file; two sequences that share only the
    first 8 are taken for new ones and encoded again, which costs time and no correctness.
    """

    def __init__(self, token_hashes: Hashes) -> None:
        """``token_hashes`` (rows, 16) uint8: the hashes of every row, filled in as the table is read."""
        self._hashes = token_hashes
        self._keys = np.empty(0, np.uint64)
        self._rows = np.empty(0, np.int64)

    def add(self, rows: slice) -> Indices:
        """Enter the next rows of the table, whose hashes are in place.

        Returns:
            (rows,) int64: for each of them the first row of the table with its sequence, or itself.
        """
        hashes = self._hashes[rows]
        _, first, inverse = np.unique(hash_keys(hashes), return_index=True, return_inverse=True)
        keys = np.ascontiguousarray(hashes[first]).view("<u8")[:, 0]  # (distinct,)
        place = np.searchsorted(self._keys, keys)
        known = np.zeros(len(keys), bool)
        inside = np.flatnonzero(place < len(self._keys))
        candidates = self._rows[place[inside]]
        known[inside] = (self._hashes[candidates] == hashes[first[inside]]).all(axis=1)
        source: Indices = first + rows.start
        source[known] = self._rows[place[known]]
        new = np.flatnonzero(~known)
        new = new[np.argsort(keys[new], kind="stable")]
        self._keys = np.insert(self._keys, place[new], keys[new])
        self._rows = np.insert(self._rows, place[new], source[new])
        sources: Indices = source[inverse.reshape(-1)]
        return sources
