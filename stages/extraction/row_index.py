"""Indexes of rows by their hashes: rows of another cache, and the first row of the table with a token sequence."""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

from ...cache.hashing import Hashes, hash_keys
from ..types import Indices

_Keys = npt.NDArray[np.uint64]
_Level = tuple[_Keys, Indices]
_LEVEL_GROWTH = 4  # how many times larger a level is than the next: more means fewer levels to search, more to copy


class RowIndex:
    """Finds a row by its 16-byte hash.

    An entry takes 16 bytes: the first 8 bytes of the hash, sorted, and the row number. The last 8 bytes are compared in
    the hashes themselves, which may be a map of a file. Of two hashes with the same first 8 bytes the index finds the
    one that was added first. The other one counts as missing: its row is encoded again, and nothing is wrong.

    Added rows form a sorted level, and levels of similar size are merged. So n rows in many small additions cost
    n log n, not n squared (O'Neil et al., The Log-Structured Merge-Tree, 1996).
    """

    def __init__(self, hashes: Hashes, rows: Indices | None = None) -> None:
        """Add some rows; ``hashes`` (rows, 16) uint8: the hash of a row must be in place when the row is added."""
        self._hashes = hashes
        self._levels: list[_Level] = []  # the largest first
        if rows is not None:
            self.add(rows)

    def add(self, rows: Indices) -> None:
        """Add rows to the index."""
        if not len(rows):
            return
        keys = _keys(self._hashes[rows])
        order = np.argsort(keys, kind="stable")
        self._levels.append((keys[order], rows[order]))
        while len(self._levels) > 1 and len(self._levels[-2][0]) < _LEVEL_GROWTH * len(self._levels[-1][0]):
            newer, older = self._levels.pop(), self._levels.pop()
            self._levels.append(_merged(older, newer))

    def find(self, hashes: Hashes) -> Indices:
        """Return the row that was added with each hash of (n, 16), or -1: (n,) int64."""
        keys = _keys(hashes)
        result = np.full(len(keys), -1, np.int64)
        for level_keys, level_rows in self._levels:
            places = np.searchsorted(level_keys, keys)
            candidates = np.flatnonzero((places < len(level_keys)) & (result < 0))
            candidates = candidates[level_keys[places[candidates]] == keys[candidates]]
            rows = level_rows[places[candidates]]
            equal = (self._hashes[rows] == hashes[candidates]).all(axis=1)
            result[candidates[equal]] = rows[equal]
        return result

    def add_first(self, rows: slice) -> Indices:
        """Add the next rows, but for those whose hash an earlier row has.

        Returns (rows,) int64: for each the first row that was added with its hash, which may be the row itself.
        """
        hashes = self._hashes[rows]
        _, first, inverse = np.unique(hash_keys(hashes), return_index=True, return_inverse=True)
        known = self.find(hashes[first])
        occurrences: Indices = np.where(known < 0, first + rows.start, known)
        self.add(np.sort(occurrences[known < 0]))
        return occurrences[inverse.reshape(-1)]


def _keys(hashes: Hashes) -> _Keys:
    return np.ascontiguousarray(hashes[:, :8]).view("<u8").reshape(-1)


def _merged(older: _Level, newer: _Level) -> _Level:
    """Merge two levels; of equal keys the older one comes first. Besides the result it takes one byte for an entry.

    The result is mapped memory, not allocated: it goes back to the system when the level is merged in its turn, even
    where the allocator keeps what is freed.
    """
    places = np.searchsorted(older[0], newer[0], side="right") + np.arange(len(newer[0]))
    from_older = np.ones(len(older[0]) + len(newer[0]), bool)
    from_older[places] = False
    keys = np.frombuffer(mmap.mmap(-1, 8 * len(from_older)), np.uint64)
    rows = np.frombuffer(mmap.mmap(-1, 8 * len(from_older)), np.int64)
    keys[from_older], keys[places] = older[0], newer[0]
    rows[from_older], rows[places] = older[1], newer[1]
    return keys, rows
