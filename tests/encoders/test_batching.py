"""Batches: every sequence once, within the budget, and each distinct sequence known by its first row."""

from __future__ import annotations

import numpy as np
import pytest
from headstart.cache.hashing import hash_texts
from headstart.stages.encoders.batching import compose_batches
from headstart.stages.extraction.row_index import RowIndex
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 200), st.booleans())
def test_batches_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int, padded: bool) -> None:
    batches = compose_batches(np.array(lengths, np.int64), budget, padded=padded)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        counted = len(batch) * longest if padded else sum(lengths[i] for i in batch)
        assert len(batch) == 1 or counted <= budget
        assert [lengths[i] for i in batch] == sorted((lengths[i] for i in batch), reverse=True)
    longest_first = [max(lengths[i] for i in batch) for batch in batches]
    assert longest_first == sorted(longest_first, reverse=True)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=120), st.integers(1, 17))
def test_each_row_is_led_to_the_first_row_with_its_tokens(values: list[int], window: int) -> None:
    hashes = hash_texts(map(str, values))
    token_hashes = np.zeros_like(hashes)
    index = RowIndex(token_hashes)
    found: list[int] = []
    for start in range(0, len(values), window):
        rows = slice(start, min(start + window, len(values)))
        token_hashes[rows] = hashes[rows]
        found += index.add_first(rows).tolist()
    assert found == [values.index(value) for value in values]


def test_hashes_that_share_eight_bytes_are_not_taken_for_each_other() -> None:
    hashes = np.zeros((4, 16), np.uint8)
    hashes[1, 15] = hashes[3, 15] = 1
    index = RowIndex(hashes)
    assert index.add_first(slice(0, 2)).tolist() == [0, 1]
    later = index.add_first(slice(2, 4)).tolist()
    assert all((hashes[row] == hashes[source]).all() for row, source in zip((2, 3), later, strict=True))


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 200))
def test_a_packed_batch_is_filled_as_far_as_what_is_to_come_can_fill_it(lengths: list[int], budget: int) -> None:
    batches = compose_batches(np.array(lengths, np.int64), budget, padded=False)
    sums = [sum(lengths[i] for i in batch) for batch in batches]
    fullest = max((tokens for tokens, batch in zip(sums, batches, strict=True) if len(batch) > 1), default=0)
    for number, tokens in enumerate(sums):
        assert all(lengths[i] > fullest - tokens for later in batches[number + 1 :] for i in later)


def test_nearly_all_packed_batches_are_full() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, 4096)
    batches = compose_batches(lengths, 2048, padded=False)
    assert sum(int(lengths[batch].sum()) == 2048 for batch in batches) >= 0.95 * (len(batches) - 1)


@pytest.mark.parametrize(("sequences", "expected"), [(20, 1), (40, 2), (60, 2), (100, 4), (120, 4), (190, 8), (230, 8)])
def test_few_packed_batches_are_of_one_size_and_as_many_as_cores_share_evenly(sequences: int, expected: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 128, sequences)
    batches = compose_batches(lengths, 2048, padded=False)
    tokens = [int(lengths[batch].sum()) for batch in batches]
    assert len(batches) == expected
    assert max(tokens) <= 2048
    assert min(tokens) > max(tokens) - 64 * len(batches)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.booleans())
def test_batches_depend_on_their_arguments_alone(lengths: list[int], padded: bool) -> None:
    once, again = (compose_batches(np.array(lengths, np.int64), 64, padded=padded) for _ in range(2))
    assert [batch.tolist() for batch in once] == [batch.tolist() for batch in again]
