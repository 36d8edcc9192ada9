"""Drift: the area under the ROC curve, and how often its interval holds the truth."""

from __future__ import annotations

import numpy as np
import pytest
from headstart.stages.heads.dataset import Dataset
from headstart.stages.heads.drift import auc_with_interval, measure_drift
from headstart.stages.threads import open_threads
from scipy.stats import norm
from sklearn.metrics import roc_auc_score


def test_the_area_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    scores = np.round(rng.normal(size=300) + labels, 1)  # with ties
    auc, (low, high) = auc_with_interval(scores, labels)
    assert auc == pytest.approx(roc_auc_score(labels, scores)) and low < auc < high


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    for shift in (0.0, 1.0, 2.5):
        truth, held = norm.cdf(shift / np.sqrt(2)), 0
        for _ in range(300):
            labels = np.repeat([0, 1], [120, 60])
            low, high = auc_with_interval(rng.normal(size=180) + shift * labels, labels)[1]
            held += low <= truth <= high
        assert held / 300 >= 0.92


def test_rows_that_are_told_apart_without_an_error_have_an_interval_too() -> None:
    auc, (low, high) = auc_with_interval(np.arange(100.0), np.repeat([0, 1], 50))
    assert auc == high == 1 and low == pytest.approx(1 - 3 / 50)


def test_new_rows_are_told_from_others_as_far_as_they_differ() -> None:
    """Where they do not, the interval holds 0.5, although a penalty is chosen."""
    rng, held = np.random.default_rng(2), 0
    with open_threads() as threads:
        for trial in range(25):
            features = rng.normal(size=(160, 6)).astype(np.float32)
            labels, index = np.repeat([1, 0], [60, 100]), np.arange(160)
            features[:, 0] += (trial == 0) * 3 * labels
            fold = np.where(rng.random(160) < 0.5, rng.integers(1, 4, 160), 0)
            drift = measure_drift(Dataset(features=features, labels=labels, index=index), fold, threads=threads)
            if trial == 0:
                assert drift.auc > 0.95
                continue
            held += drift.interval[0] <= 0.5 <= drift.interval[1]
    assert held >= 20
