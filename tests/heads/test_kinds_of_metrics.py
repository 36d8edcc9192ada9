"""Metrics of numbers, of classes with an order, and of several labels a row, against scikit-learn and scipy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.stats
from headstart.stages.heads.multi_label_metrics import evaluate_labels, probabilities
from headstart.stages.heads.number_metrics import _weighted_correlation, evaluate_numbers, order_metrics
from headstart.stages.heads.thresholds import NEVER, find_thresholds
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk


@settings(max_examples=30)
@given(st.integers(2, 60), st.integers(0, 1000), st.sampled_from([0.0, 1e6]))
def test_scores_of_numbers_equal_those_of_scikit_learn_and_scipy(rows: int, seed: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(5, size=rows) + offset
    predicted = values + rng.normal(size=rows).round(1)
    found = evaluate_numbers(values, predicted, np.arange(rows), resamples=20)
    assert np.isclose(found["r2"], sk.r2_score(values, predicted))
    assert np.isclose(found["mean_absolute_error"], sk.mean_absolute_error(values, predicted))
    assert np.isclose(found["root_mean_squared_error"], sk.root_mean_squared_error(values, predicted))
    if np.ptp(values) == 0 or np.ptp(predicted) == 0:
        assert found["spearman"] is None and found["spearman_interval"] is None
    else:
        assert np.isclose(found["spearman"], scipy.stats.spearmanr(values, predicted).statistic)
        assert -1 <= found["spearman_interval"][0] <= found["spearman"] <= found["spearman_interval"][1] <= 1
    for name in ("r2", "mean_absolute_error", "root_mean_squared_error"):
        low, high = found[f"{name}_interval"]
        assert low <= found[name] <= high


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 1000))
def test_scores_of_ordered_classes_equal_those_of_scikit_learn(rows: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(classes, size=(2, rows))
    found = order_metrics(labels, predicted, np.arange(rows), classes=classes, resamples=20)
    assert np.isclose(found["mean_absolute_error"], sk.mean_absolute_error(labels, predicted))
    if len(np.union1d(labels, predicted)) > 1:
        expected = sk.cohen_kappa_score(labels, predicted, weights="quadratic", labels=range(classes))
        assert np.isclose(found["quadratic_kappa"], expected)
    for name in ("mean_absolute_error", "quadratic_kappa"):
        low, high = found[f"{name}_interval"]
        assert low <= found[name] <= high


@settings(max_examples=8)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 1000))
def test_scores_of_labels_equal_those_of_scikit_learn(rows: int, labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = (rng.random((rows, labels)) < rng.random(labels)).astype(np.uint8)
    logits = rng.normal(size=(rows, labels)).round(1) + targets
    thresholds = rng.random(labels)
    names = tuple("abcde"[:labels])
    for given_thresholds in (None, thresholds):
        found = evaluate_labels(
            targets, logits, np.arange(rows), names=names, thresholds=given_thresholds, resamples=20
        )
        said = probabilities(logits) >= (0.5 if given_thresholds is None else thresholds)
        options: dict[str, Any] = {"zero_division": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a single label
            for average in ("micro", "macro", "samples"):
                per_row = average == "samples" and labels == 1  # scikit-learn takes one column for one class a row
                if per_row:
                    assert np.isclose(found["samples_f1"], (targets[:, 0] & said[:, 0]).mean())
                elif labels > 1:
                    assert np.isclose(found[f"{average}_f1"], sk.f1_score(targets, said, average=average, **options))
        assert np.isclose(found["subset_accuracy"], sk.accuracy_score(targets, said))
        for i, name in enumerate(names):
            ours = found["per_class"][name]
            precision, recall, f1, _ = sk.precision_recall_fscore_support(
                targets[:, i], said[:, i], average="binary", **options
            )
            assert np.allclose([ours["precision"], ours["recall"], ours["f1"]], [precision, recall, f1])
            assert ours["rows"] == targets[:, i].sum()
            if ours["rows"]:
                expected = sk.average_precision_score(targets[:, i], logits[:, i])
                assert np.isclose(ours["average_precision"], expected)
            else:
                assert ours["average_precision"] is None
        chances = probabilities(logits)
        losses = [sk.log_loss(targets[:, i], chances[:, i], labels=[0, 1]) for i in range(labels)]
        assert np.isclose(found["log_loss"], np.mean(losses))
        for name in ("micro_f1", "macro_f1", "samples_f1", "subset_accuracy", "log_loss"):
            low, high = found[f"{name}_interval"]
            assert low <= found[name] <= high


def sample(rng: Any, kind: str, rows: int) -> dict[str, Any]:
    """Scores of rows from a world of this kind."""
    groups, resamples = np.arange(rows), 100
    if kind == "numbers":
        values = rng.normal(size=rows)
        return evaluate_numbers(values, values + rng.normal(size=rows), groups, resamples=resamples)
    if kind == "order":
        labels = rng.integers(4, size=rows)
        predicted = np.clip(labels + rng.choice([-1, 0, 1], rows, p=[0.1, 0.8, 0.1]), 0, 3)
        return order_metrics(labels, predicted, groups, classes=4, resamples=resamples)
    targets = (rng.random((rows, 3)) < [0.2, 0.4, 0.6]).astype(np.uint8)
    logits = 2 * rng.normal(size=(rows, 3)) + np.where(targets, 3, -3)
    return evaluate_labels(targets, logits, groups, names=("a", "b", "c"), resamples=resamples)


@pytest.mark.parametrize("kind", ["numbers", "order", "labels"])
def test_intervals_hold_the_truth_in_simulation(kind: str) -> None:
    truth = sample(np.random.default_rng(1), kind, 100_000)
    rng = np.random.default_rng(0)
    samples = [sample(rng, kind, 30) for _ in range(60)]
    names = [name.removesuffix("_interval") for name in truth if name.endswith("_interval")]
    assert names
    for name in names:
        held = [one[f"{name}_interval"][0] <= truth[name] <= one[f"{name}_interval"][1] for one in samples]
        assert np.mean(held) >= 0.88, name


@pytest.mark.parametrize("kind", ["numbers", "order", "labels"])
def test_copies_of_texts_do_not_narrow_intervals_and_no_error_is_not_certain(kind: str) -> None:
    groups, copies = np.arange(20), np.repeat(np.arange(20), 3)
    labels = np.arange(20) % 3
    targets = np.eye(3, dtype=np.uint8)[labels]

    def scored(groups: Any) -> dict[str, Any]:
        own = labels[groups]
        if kind == "numbers":
            return evaluate_numbers(own.astype(float), own + 0.1 * (own == 2), groups)
        if kind == "order":
            return order_metrics(own, own, groups, classes=3)
        return evaluate_labels(targets[groups], targets[groups] * 4.0 - 2, groups, names=("a", "b", "c"))

    alone, copied = scored(groups), scored(copies)
    names = [name for name in alone if name.endswith("_interval")]
    for name in names:
        np.testing.assert_allclose(copied[name], alone[name], atol=1e-9)
        assert np.ptp(alone[name]) > 0.002


def test_thresholds_have_the_highest_f1_or_the_most_rows_at_a_precision() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((80, 4)) < [0.1, 0.3, 0.6, 0]).astype(np.uint8)
    chances = np.round(1 / (1 + np.exp(-rng.normal(size=(80, 4)) - targets)), 1)
    tried = np.append(np.unique(chances), 1.1)
    weights = np.ones((80, 4))
    found = find_thresholds(targets, chances, weights)
    precise = find_thresholds(targets, chances, weights, floors=dict.fromkeys(range(4), 0.6))
    for label in range(3):
        true, scores = targets[:, label], chances[:, label]
        best = max(sk.f1_score(true, scores >= threshold, zero_division=0) for threshold in tried)
        assert sk.f1_score(true, scores >= found[label]) == pytest.approx(best)
        recalls = [
            sk.recall_score(true, scores >= threshold)
            for threshold in tried
            if sk.precision_score(true, scores >= threshold, zero_division=0) >= 0.6
        ]
        said = scores >= precise[label]
        assert sk.recall_score(true, said) == pytest.approx(max(recalls, default=0))
        assert not said.any() or sk.precision_score(true, said) >= 0.6
    assert found[3] == 0.5 and precise[3] == NEVER
    of_some = find_thresholds(targets, chances, weights, floors={1: 0.6})
    assert (of_some == np.where(np.arange(4) == 1, precise, found)).all()
    wrong = find_thresholds(1 - targets[:, :1], targets[:, :1].astype(float), weights[:, :1], floors={0: 0.99})
    assert wrong[0] == NEVER


def test_a_rank_correlation_of_rows_that_are_far_off_in_part_is_held() -> None:
    """One row of twenty is ten times as far off: a formula for normal errors held the truth in half of the samples."""
    rng = np.random.default_rng(5)

    def sample(rows: int) -> Any:
        values = rng.normal(size=rows)
        errors = np.where(rng.random(rows) < 0.05, 1.0, 0.1) * rng.normal(size=rows)
        return values, values + errors

    truth = scipy.stats.spearmanr(*sample(200_000)).statistic
    bounds = [evaluate_numbers(*sample(200), np.arange(200), resamples=200)["spearman_interval"] for _ in range(50)]
    assert np.mean([low <= truth <= high for low, high in bounds]) >= 0.86


def test_a_rank_correlation_with_weights_is_that_of_repeated_rows() -> None:
    rng = np.random.default_rng(6)
    values, predicted = rng.integers(9, size=(2, 40)).astype(float)
    times = rng.integers(1, 4, size=40)
    places = [np.unique(side, return_inverse=True)[1] for side in (values, predicted)]
    expected = scipy.stats.spearmanr(np.repeat(values, times), np.repeat(predicted, times)).statistic
    assert _weighted_correlation(places, times.astype(float)) == pytest.approx(expected)


def test_a_label_of_which_there_is_nothing_may_be_right() -> None:
    targets = np.tile(np.array([[1, 0], [0, 0]], np.uint8), (20, 1))
    found = evaluate_labels(targets, 8.0 * targets - 4, np.arange(40), names=("a", "b"))
    low, high = found["macro_f1_interval"]
    assert found["macro_f1"] == 0.5 and low < 0.5 and high > 0.95
