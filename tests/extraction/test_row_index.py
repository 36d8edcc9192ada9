"""The index finds the first row with a hash, and never a row with another hash; and the scan counts texts."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from headstart.cache.hashing import hash_texts
from headstart.stages.extraction.row_index import RowIndex
from headstart.stages.tables import scan
from headstart.stages.tables.scan import count_texts
from hypothesis import given
from hypothesis import strategies as st

Pieces = list[list[int]]
PIECES = st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=30)
"""Rows of a table by their texts, as they come piece by piece."""


def entered(values: list[int], pieces: Pieces, hashes: np.ndarray) -> RowIndex:
    index, start = RowIndex(hashes), 0
    for piece in pieces:
        index.add(np.arange(start, start + len(piece)))
        start += len(piece)
    assert start == len(values)
    return index


@given(PIECES)
def test_the_first_row_with_a_hash_is_found_and_no_other(pieces: Pieces) -> None:
    values = [value for piece in pieces for value in piece]
    found = entered(values, pieces, hash_texts(map(str, values))).find(hash_texts(map(str, range(60))))
    assert found.tolist() == [values.index(value) if value in values else -1 for value in range(60)]


def clashing(values: list[int]) -> np.ndarray:
    """Hashes of which every fifth shares its first 8 bytes with another, and none its last 8."""
    hashes = np.zeros((len(values), 16), np.uint8)
    hashes[:, 7] = np.array(values, np.uint8) % 5
    hashes[:, 15] = values
    return hashes


@given(PIECES)
def test_hashes_that_share_eight_bytes_are_never_taken_for_each_other(pieces: Pieces) -> None:
    values = [value for piece in pieces for value in piece]
    found = entered(values, pieces, clashing(values)).find(clashing(list(range(60))))
    for value, row in enumerate(found.tolist()):
        if row >= 0:
            assert values[row] == value
        elif value in values:  # taken for absent, for the sake of one that was entered before it
            earlier = values[: values.index(value)]
            assert any(other % 5 == value % 5 for other in earlier)


@given(PIECES)
def test_first_rows_lead_to_a_row_with_the_same_hash_even_then(pieces: Pieces) -> None:
    values = [value for piece in pieces for value in piece]
    hashes, start = clashing(values), 0
    index = RowIndex(hashes)
    for piece in pieces:
        sources = index.add_first(slice(start, start + len(piece)))
        for row, source in enumerate(sources.tolist(), start):
            assert source <= row and values[source] == values[row]
            assert source < start or source == start + piece.index(values[row])
        start += len(piece)


def test_entries_that_come_one_by_one_stay_in_few_levels() -> None:
    hashes = hash_texts(map(str, range(3000)))
    index = RowIndex(hashes)
    for row in range(len(hashes)):
        index.add(np.array([row]))
        assert len(index._levels) <= math.log(row + 1, 4) + 1
    assert index.find(hashes).tolist() == list(range(3000))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 16])
@given(rows=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=1, max_size=60), labelled=st.booleans())
def test_texts_are_counted_as_a_dictionary_would(chunk: int, rows: list[tuple[int, int]], labelled: bool) -> None:
    seen: dict[int, set[int]] = defaultdict(set)
    for text, label in rows:
        seen[text].add(label)
    hashes = np.concatenate([hash_texts([str(text) for text, _ in rows]), clashing([text for text, _ in rows])])
    labels = np.array([label for _, label in rows] * 2, np.int64) if labelled else None
    conflicting = sum(len(found) > 1 for found in seen.values()) if labelled else 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "_CHUNK", chunk)
        assert count_texts(hashes, labels) == (2 * len(seen), 2 * conflicting)
