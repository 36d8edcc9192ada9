"""Division of rows: no text is on two sides, every class is on both, and the seed decides."""

from __future__ import annotations

import numpy as np
import pytest
from headstart.cache.errors import TableError
from headstart.cache.hashing import hash_texts
from headstart.stages.splits.stratify import (
    assign_folds,
    group_rows,
    hold_out,
    require_trainable,
    require_variety,
    strata_of,
)
from hypothesis import given
from hypothesis import strategies as st


@given(st.data(), st.integers(2, 150), st.integers(1, 5), st.floats(0.05, 0.6), st.integers(0, 100))
def test_no_text_is_on_two_sides(data: st.DataObject, rows: int, classes: int, fraction: float, seed: int) -> None:
    values = data.draw(st.lists(st.integers(0, rows), min_size=rows, max_size=rows))
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)), np.int64)
    groups = group_rows(hash_texts(map(str, values)))
    everything = np.arange(rows)
    kept, held = hold_out(everything, labels, groups, fraction=fraction, rng=np.random.default_rng(seed))
    assert sorted([*kept, *held]) == list(range(rows))
    assert not set(groups[kept]) & set(groups[held])
    again = hold_out(everything, labels, groups, fraction=fraction, rng=np.random.default_rng(seed))
    np.testing.assert_array_equal(held, again[1])


def test_every_class_gives_its_share() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    groups = np.arange(1000)
    _, held = hold_out(np.arange(1000), labels, groups, fraction=0.2, rng=np.random.default_rng(0))
    assert np.bincount(labels[held]).tolist() == [120, 60, 20]
    other = hold_out(np.arange(1000), labels, groups, fraction=0.2, rng=np.random.default_rng(1))[1]
    assert set(other) != set(held)


def test_a_class_of_two_texts_is_on_both_sides_and_a_single_text_is_kept() -> None:
    labels = np.array([0] * 20 + [1, 1] + [2])
    groups = np.arange(23)
    for seed in range(5):
        kept, held = hold_out(np.arange(23), labels, groups, fraction=0.1, rng=np.random.default_rng(seed))
        assert (labels[held] == 1).sum() == (labels[kept] == 1).sum() == 1
        assert (labels[kept] == 2).sum() == 1


def test_labels_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(TableError, match="one class only"):
        require_trainable(np.zeros(5, np.int64), np.arange(5), ("a", "b"), "c.h5")
    with pytest.raises(TableError, match="the label 'b' has one distinct text only"):
        require_trainable(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2]), ("a", "b"), "c.h5")


def test_a_text_that_fills_a_class_does_not_spoil_the_share() -> None:
    """900 copies of one text and 100 other texts. A fifth is 200 rows, but only the 100 others can be held out."""
    groups = np.concatenate([np.zeros(900, np.int64), np.arange(1, 101)])
    for seed in range(20):
        held = hold_out(
            np.arange(1000), np.zeros(1000, np.int64), groups, fraction=0.2, rng=np.random.default_rng(seed)
        )[1]
        assert 99 <= len(held) <= 100


def test_a_text_with_several_labels_counts_for_the_rarest() -> None:
    labels = np.array([0] * 20 + [1] * 20 + [0, 2, 1, 2, 2])
    groups = np.array([*range(40), 40, 40, 41, 41, 42])
    for seed in range(12):
        kept, held = hold_out(np.arange(45), labels, groups, fraction=0.2, rng=np.random.default_rng(seed))
        assert (labels[kept] == 2).any() and (labels[held] == 2).any()


@given(st.integers(0, 1000), st.integers(2, 6))
def test_folds_share_no_text_and_have_their_share_of_every_class(seed: int, folds: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(100, size=240)
    labels = rng.integers(3, size=100)[groups]
    rows = np.sort(rng.permutation(240)[:200])
    fold = assign_folds(rows, labels, groups, folds=folds, rng=np.random.default_rng(seed))
    assert fold.min() >= 1 and fold.max() <= folds and fold.shape == (200,)
    for group in np.unique(groups[rows]):
        assert len(set(fold[groups[rows] == group])) == 1
    largest = np.bincount(groups[rows]).max()
    for label in range(3):
        counts = np.bincount(fold[labels[rows] == label], minlength=folds + 1)[1:]
        assert counts.max() - counts.min() <= largest
    again = assign_folds(rows, labels, groups, folds=folds, rng=np.random.default_rng(seed))
    assert np.array_equal(fold, again)


def test_more_folds_than_texts_are_refused() -> None:
    labels, groups = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3])
    with pytest.raises(TableError, match=r"c\.h5: 4 distinct texts cannot be divided into 5 folds"):
        assign_folds(np.arange(4), labels, groups, folds=5, rng=np.random.default_rng(0), where="c.h5")


def test_a_class_with_a_single_text_is_in_no_fold() -> None:
    labels, groups = np.array([0] * 8 + [1, 1, 1]), np.array([*range(8), 8, 8, 8])
    fold = assign_folds(np.arange(11), labels, groups, folds=2, rng=np.random.default_rng(0))
    assert set(fold[:8]) == {1, 2} and set(fold[8:]) == {0}


def test_numbers_are_divided_by_quantiles() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.permutation(np.exp(rng.normal(size=1000)))
    strata = strata_of(numbers)
    assert np.bincount(strata).tolist() == [100] * 10
    assert all(numbers[strata == low].max() < numbers[strata == low + 1].min() for low in range(9))
    groups = np.repeat(np.arange(500), 2)
    kept, held = hold_out(np.arange(1000), strata, groups, fraction=0.2, rng=rng)
    assert abs(len(held) - 200) <= 10 and not set(groups[kept]) & set(groups[held])
    assert abs(np.median(numbers[kept]) - np.median(numbers[held])) < 0.15
    assert strata_of(np.arange(30) / 7).max() == 0  # few rows are one stratum
    assert strata_of(np.array([1.0, np.nan, 2.0])).tolist() == [0, -1, 0]
    assert strata_of(np.repeat([0.0, 5.5], [500, 10])).max() < 10  # many equal numbers


def test_sets_are_divided_by_their_rarest_label() -> None:
    sets = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0], [255, 255, 255]], np.uint8)
    assert strata_of(sets).tolist() == [0, 1, 1, 2, 3, -1]
    rng = np.random.default_rng(0)
    many = (rng.random((2000, 4)) < [0.5, 0.2, 0.05, 0.01]).astype(np.uint8)
    fold = assign_folds(np.arange(2000), strata_of(many), np.arange(2000), folds=5, rng=rng)
    share = np.stack([many[fold == number].mean(axis=0) for number in range(1, 6)])
    assert (share[:, 3] > 0).all() and np.ptp(share, axis=0).max() < 0.05


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(5, 2.5), "all labels that are left to train on are 2.5"),
        (np.array([[1, 0], [1, 0]], np.uint8), "no rows that are left to train on have the label 'b'"),
        (np.array([[1, 1], [1, 0]], np.uint8), "all rows that are left to train on have the label 'a'"),
        (np.empty(0), "no rows are left"),
    ],
)
def test_rows_with_nothing_to_learn_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(TableError, match=message):
        require_variety(labels, ("a", "b"), "c.h5")
