"""Intervals: the exact ones against scipy and their exact coverage, the others by coverage in simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from headstart.stages.heads import intervals
from headstart.stages.heads.intervals import (
    _Ranking,
    average_precision_interval,
    exact_interval,
    f1_intervals,
    share_intervals,
)
from headstart.stages.heads.metrics import evaluate
from hypothesis import given, settings
from hypothesis import strategies as st
from interval_coverage import SCORES, coverage, exact_coverage
from sklearn.metrics import average_precision_score


@given(st.integers(1, 100_000), st.data())
def test_the_interval_of_a_share_is_scipys_exact_one(rows: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, rows))
    (ours,) = exact_interval(np.array([correct / rows]), np.array([float(rows)]))
    expected = scipy.stats.binomtest(correct, rows).proportion_ci(method="exact")
    np.testing.assert_allclose(ours, expected, atol=1e-9)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1, 1e5)), min_size=1, max_size=4))
def test_numbers_of_trials_need_not_be_whole(cases: list[tuple[float, float]]) -> None:
    share, trials = np.array(cases).T
    hits, misses = share * trials, (1 - share) * trials
    ours = exact_interval(share, trials)
    for side, a, b in ((ours[:, 0], hits, misses), (1 - ours[:, 1], misses, hits)):
        some = a > 0.01
        np.testing.assert_allclose(side[some], scipy.stats.beta.ppf(0.025, a[some], b[some] + 1), atol=1e-9)
        assert (side[a < 1e-6] == 0).all()


def test_all_right_is_not_certain() -> None:
    """48 of 48: the true share may well be 0.926."""
    labels = np.arange(48) % 2
    logits = np.log(np.where(labels[:, None] == np.arange(2), 0.99, 0.01))
    found = evaluate(labels, logits, np.arange(48), names=("a", "b"))
    np.testing.assert_allclose(found["accuracy_interval"], [0.025 ** (1 / 48), 1], atol=1e-9)
    np.testing.assert_allclose(found["per_class"]["a"]["recall_interval"], [0.025 ** (1 / 24), 1], atol=1e-9)
    assert found["macro_f1_interval"][0] < 0.95 and found["macro_f1_interval"][1] == 1
    assert found["log_loss_interval"][1] > 0.1  # one wrong row of 49 would cost as much


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [20, 50, 500])
def test_a_share_is_held_in_95_of_100_samples_or_more(n: int, p: float) -> None:
    """Summed over all outcomes, so without chance."""
    assert 0.95 <= exact_coverage(n, p) <= 0.991


@pytest.mark.parametrize(
    ("world", "n", "p"), [("calibrated", 50, 0.9), ("overconfident", 20, 0.99), ("copies", 50, 0.9)]
)
def test_every_interval_holds_the_truth_in_simulation(world: str, n: int, p: float) -> None:
    """`bench/interval_coverage.py` prints the table of all sizes. 120 samples show an interval that is untrue."""
    held, _ = coverage(world, n, p, samples=120, rows=50_000)
    assert min(held.values()) >= 0.9, held


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 30), st.integers(2, 4))
def test_a_score_lies_in_its_interval_which_copies_of_texts_do_not_narrow(seed: int, texts: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(classes, size=texts), np.arange(texts)
    probabilities = rng.dirichlet(np.ones(classes) / 4, size=texts) + 1e-9
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    rows: tuple[Any, ...] = (labels, np.log(probabilities), groups)
    names = tuple("abcd"[:classes])
    alone = evaluate(*rows, names=names, resamples=30)
    copied = evaluate(*(np.repeat(array, 3, axis=0) for array in rows), names=names, resamples=30)
    for score in SCORES:
        low, high = alone[f"{score}_interval"]
        assert 0 <= low <= alone[score] <= high
        np.testing.assert_allclose(copied[f"{score}_interval"], [low, high], atol=1e-9)
    for name in names:
        for score in ("precision_interval", "recall_interval"):
            np.testing.assert_allclose(copied["per_class"][name][score], alone["per_class"][name][score], atol=1e-9)


def test_one_text_with_most_of_the_rows_widens_the_interval() -> None:
    """51 texts, of which one has 50 rows: its rows are nearly all that there is to know."""
    groups = np.concatenate([np.zeros(50, np.int64), np.arange(1, 51)])
    zeros, wrong = np.zeros(100, np.int64), groups == 0
    alone = np.arange(100)
    assert np.ptp(share_intervals(~wrong, zeros, alone, classes=1)) < 0.21
    assert np.ptp(share_intervals(~wrong, zeros, groups, classes=1)) > 0.7


def test_the_bootstrap_over_kinds_of_texts_equals_the_bootstrap_over_texts() -> None:
    """Compared with the classical bootstrap, text by text. Some texts have several rows and different labels."""
    rng = np.random.default_rng(1)
    groups = np.sort(rng.integers(400, size=1500))
    labels, said = rng.integers(3, size=1500), rng.integers(3, size=400)
    predicted = np.where(rng.random(400) < 0.5, labels[np.searchsorted(groups, np.arange(400)) % 1500], said)[groups]
    ours = f1_intervals(labels, predicted, groups, classes=3, seed=0, resamples=4000)
    scores = []
    for _ in range(1000):
        weights = np.bincount(rng.integers(400, size=400), minlength=400)[groups]
        matrix = np.bincount(labels * 3 + predicted, weights, 9).reshape(3, 3)
        f1 = 2 * np.diag(matrix) / (matrix.sum(0) + matrix.sum(1))
        scores.append([f1.mean(), f1 @ matrix.sum(1) / matrix.sum()])
    for name, expected in zip(("macro_f1", "weighted_f1"), np.percentile(scores, [2.5, 97.5], axis=0).T, strict=True):
        np.testing.assert_allclose(ours[name], expected, atol=0.006)


def test_a_calibration_error_is_at_most_one() -> None:
    sure = np.array([[0, -1e4], [-1e4, 0]] * 10)
    assert evaluate(np.array([1, 0] * 10), sure, np.arange(20), names=("a", "b"))["calibration_error_interval"][1] == 1


@pytest.mark.parametrize("own", [True, False])
def test_a_resample_of_average_precision_is_scikit_learns_with_weights_and_a_row_more(own: bool) -> None:
    rng = np.random.default_rng(2)
    of_class, scores, group = rng.random(60) < 0.3, rng.integers(7, size=60).astype(float), np.arange(60) // 2
    weights, more = rng.exponential(size=(3, 30)), rng.exponential(size=3)
    found = _Ranking(of_class, scores, group).bounds(weights, more, np.full(3, own))
    # The row more is of the class, at the lowest or highest rank; or of another class, at the highest or lowest.
    for side, score in ((0, -1.0 if own else 9.0), (1, 9.0 if own else -1.0)):
        for resample in range(3):
            expected = average_precision_score(
                np.append(of_class, own),
                np.append(scores, score),
                sample_weight=np.append(weights[resample][group], more[resample]),
            )
            assert found[side][resample] == pytest.approx(expected)


def test_average_precision_is_derived_by_the_weights_of_rows() -> None:
    rng = np.random.default_rng(3)
    of_class, scores = rng.random(60) < 0.3, rng.integers(7, size=60).astype(float)
    ranking = _Ranking(of_class, scores, np.arange(60))
    precision, effects, top = ranking.linear()
    assert precision == pytest.approx(average_precision_score(of_class, scores))

    def moved(labels: Any, scores: Any, row: int, step: float = 1e-5) -> float:
        weights = np.ones(len(labels))
        weights[row] = step if row == 60 else 1 + step  # the row of the number 60 was added
        return float((average_precision_score(labels, scores, sample_weight=weights) - precision) / step)

    expected = [moved(of_class, scores, row) for row in ranking.text]
    np.testing.assert_allclose(effects, expected, atol=1e-6)
    assert -top == pytest.approx(moved(np.append(of_class, False), np.append(scores, 9.0), 60), abs=1e-6)


@pytest.mark.parametrize("noise", [0.05, 0.5, 1.0])
def test_average_precision_of_many_rows_has_the_interval_of_resamples(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    groups = np.arange(6000) // 2  # each text twice
    labels = rng.choice(4, 3000, p=[0.4, 0.3, 0.2, 0.1])[groups]
    scores = np.eye(5)[labels] + noise * rng.normal(size=(3000, 5))[groups]  # the last class has no row

    def interval() -> Any:
        return average_precision_interval(scores, lambda label: labels == label, groups, seed=0, resamples=1000)

    resampled = interval()
    monkeypatch.setattr(intervals, "_MAX_RANKED", 0)
    linear = interval()
    np.testing.assert_allclose(linear, resampled, atol=0.3 * np.ptp(resampled))
    assert linear[0] < resampled[0]  # what a text more may cost is estimated from above
    assert average_precision_interval(scores, lambda label: labels > 9, groups, seed=0, resamples=1000) is None
