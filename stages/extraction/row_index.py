"""Finding rows by their hashes: within a table, each sequence's first row; in another cache, the same text's row."""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

from ...cache.hashing import Hashes, hash_keys

Indices = npt.NDArray[np.int64]
_Level = tuple[npt.NDArray[np.uint64], Indices]
_LEVEL_GROWTH = 4
"""How many times larger one level of the index is than the next: more means fewer to search, and more to copy."""


class RowIndex:
    """Finds a row by its 16-byte hash.

    An entry takes 16 bytes: the first 8 of its hash, sorted, and its row. The other 8 are looked up in the hashes
    themselves, which may be a map of a file. Of two entries that share the first 8 bytes the earlier is found, and the
    other taken for absent: that costs an encoding, and no correctness.

    New entries come as a sorted level of their own, and levels of similar size are merged: so n entries that come
    little by little cost n log n, not n squared (O'Neil et al., The Log-Structured Merge-Tree, 1996).
    """

    def __init__(self, hashes: Hashes) -> None:
        """``hashes`` (rows, 16) uint8: those of every row that will be entered, in place by then."""
        self._hashes = hashes
        self._levels: list[_Level] = []  # the largest first

    def add(self, rows: Indices) -> None:
        """Enter rows, whose hashes are in place."""
        if not len(rows):
            return
        keys = _keys(self._hashes[rows])
        order = np.argsort(keys, kind="stable")
        self._levels.append((keys[order], rows[order]))
        while len(self._levels) > 1 and len(self._levels[-2][0]) < _LEVEL_GROWTH * len(self._levels[-1][0]):
            newer, older = self._levels.pop(), self._levels.pop()
            self._levels.append(_merged(older, newer))

    def find(self, hashes: Hashes) -> Indices:
        """For each hash (n, 16) the row that was entered with it, or -1: (n,) int64."""
        keys = _keys(hashes)
        found = np.full(len(keys), -1, np.int64)
        for level_keys, level_rows in self._levels:
            place = np.searchsorted(level_keys, keys)
            inside = np.flatnonzero((place < len(level_keys)) & (found < 0))
            inside = inside[level_keys[place[inside]] == keys[inside]]
            rows = level_rows[place[inside]]
            same = (self._hashes[rows] == hashes[inside]).all(axis=1)
            found[inside[same]] = rows[same]
        return found


class FirstOccurrences:
    """Remembers, for each token sequence, the first row of the table that has it."""

    def __init__(self, token_hashes: Hashes) -> None:
        """``token_hashes`` (rows, 16) uint8: the hashes of every row, filled in as the table is read."""
        self._hashes = token_hashes
        self._lookup = RowIndex(token_hashes)

    def add(self, rows: slice) -> Indices:
        """Enter the next rows of the table, whose hashes are in place.

        Returns:
            (rows,) int64: for each of them the first row of the table with its sequence, or itself.
        """
        hashes = self._hashes[rows]
        _, first, inverse = np.unique(hash_keys(hashes), return_index=True, return_inverse=True)
        known = self._lookup.find(hashes[first])
        sources = np.where(known < 0, first + rows.start, known)
        self._lookup.add(np.sort(sources[known < 0]))
        found: Indices = sources[inverse.reshape(-1)]
        return found


def _keys(hashes: Hashes) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(hashes[:, :8]).view("<u8").reshape(-1)


def _merged(older: _Level, newer: _Level) -> _Level:
    """Both levels as one; of equal keys the older first. Takes no memory but the result's, and a byte an entry.

    Levels are mapped, not allocated: their memory goes back to the system when they are merged, whatever the allocator
    is told to keep.
    """
    places = np.searchsorted(older[0], newer[0], side="right") + np.arange(len(newer[0]))
    from_older = np.ones(len(older[0]) + len(newer[0]), bool)
    from_older[places] = False
    keys = np.frombuffer(mmap.mmap(-1, 8 * len(from_older)), np.uint64)
    rows = np.frombuffer(mmap.mmap(-1, 8 * len(from_older)), np.int64)
    keys[from_older], keys[places] = older[0], newer[0]
    rows[from_older], rows[places] = older[1], newer[1]
    return keys, rows
