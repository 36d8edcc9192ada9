"""Cumulative logits against statsmodels, and against the definition, minimised by scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
from feature_rows import feature_rows
from headstart.stages.heads.one_vs_rest import held_out_logits
from headstart.stages.heads.ordinal import OrdinalSolver, class_log_probabilities
from headstart.stages.threads import open_threads

STATSMODELS = {
    "weight": [2.1403502, -1.1484502, -3.2680709],
    "cuts": [-1.1289886, 0.5519326, 1.9581557],
}
"""What statsmodels 0.15 finds for `problem(3, 4)`: OrderedModel(labels, features, distr="logit").fit(method="newton",
tol=1e-12), with cuts by its transform_threshold_params."""


def problem(width: int, classes: int, rows: int = 500) -> tuple[Any, Any]:
    """Features (rows, width) float32, centered, and class numbers."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(rows, width)) * np.logspace(0, -1, width)
    features = (features - features.mean(0)).astype(np.float32)
    hidden = features @ rng.normal(size=width) * 2 + rng.logistic(size=rows)
    return features, np.digitize(hidden, np.linspace(-1.5, 2, classes - 1)).astype(np.int64)


def objective(features: Any, labels: Any, weight: Any, bias: Any, l2: float, weights: Any = 1.0) -> float:
    """The objective in float64, from its definition."""
    score = features.astype(np.float64) @ weight
    edges = np.concatenate([[np.inf], bias, [-np.inf]])
    chances = 1 / (1 + np.exp(-score - edges[labels])) - 1 / (1 + np.exp(-score - edges[labels + 1]))
    return float(-(np.log(chances) * weights).sum() + l2 / 2 * (weight**2).sum())


def by_scipy(features: Any, labels: Any, l2: float, weights: Any = 1.0) -> tuple[Any, Any]:
    width, classes = features.shape[1], int(labels.max()) + 1

    def unpack(point: Any) -> tuple[Any, Any]:
        return point[:width], point[width] - np.concatenate([[0], np.cumsum(np.exp(point[width + 1 :]))])

    start = np.concatenate([np.zeros(width), [1.0], np.full(classes - 2, -0.5)])
    found = scipy.optimize.minimize(
        lambda point: objective(features, labels, *unpack(point), l2, weights), start, method="BFGS", tol=1e-8
    )
    return unpack(found.x)


def solve(
    features: Any, labels: Any, *l2s: float, classes: int | None = None, weights: Any = None, fold: Any = None
) -> Any:
    folds = 1 if fold is None else int(fold.max())
    weights = np.ones(classes or int(labels.max()) + 1) if weights is None else weights
    with open_threads() as threads:
        solver = OrdinalSolver(
            feature_rows(features), labels, class_weights=weights, fold=fold, folds=folds, threads=threads
        )
        return [solver.solve(l2) for l2 in l2s]


def test_without_penalty_it_is_the_model_of_statsmodels() -> None:
    features, labels = problem(3, 4)
    ((weight, bias, report),) = solve(features, labels, 1e-9)
    np.testing.assert_allclose(weight[0, 0], STATSMODELS["weight"], atol=2e-6)
    np.testing.assert_allclose(-bias[0], STATSMODELS["cuts"], atol=2e-6)
    assert report.converged


@pytest.mark.parametrize(("width", "classes", "rows"), [(4, 2, 200), (5, 5, 300), (40, 3, 30)])
def test_the_optimum_is_no_higher_than_that_of_scipy(width: int, classes: int, rows: int) -> None:
    features, labels = problem(width, classes, rows)
    costs = np.linspace(1, 2, classes)
    l2s = (10.0, 0.1)
    for l2, (weight, bias, report) in zip(l2s, solve(features, labels, *l2s, weights=costs), strict=True):
        theirs = objective(features, labels, *by_scipy(features, labels, l2, costs[labels]), l2, costs[labels])
        ours = objective(features, labels, weight[0, 0], bias[0], l2, costs[labels])
        assert ours <= theirs * (1 + 1e-9)
        assert report.converged and report.objective == pytest.approx(ours, rel=1e-7)
        assert (np.diff(bias[0]) < 0).all()


def test_each_fold_is_solved_without_its_rows() -> None:
    features, labels = problem(5, 4)
    fold = np.arange(len(labels)) % 4  # 0: in no fold
    ((weights, biases, _),) = solve(features, labels, 0.5, fold=fold)
    logits = held_out_logits(feature_rows(features), fold, weights, biases)
    for held in (1, 2, 3):
        out = fold == held
        assert not logits[fold == 0].any()
        center = features[~out].mean(0)
        ((weight, bias, _),) = solve(features[~out] - center, labels[~out], 0.5)
        np.testing.assert_allclose(logits[out], (features[out] - center) @ weight[0].T + bias[0], atol=1e-4)


def test_a_class_without_rows_is_improbable_but_not_impossible() -> None:
    features, labels = problem(3, 4)
    for absent in range(5):
        ((weight, bias, report),) = solve(features, labels + (labels >= absent), 1.0, classes=5)
        chances = np.exp(class_log_probabilities(features @ weight[0].T + bias[0]))
        assert report.converged and (chances > 0).all()
        np.testing.assert_allclose(chances.sum(1), 1)
        assert chances[:, absent].mean() < 0.01
        ((_, _, alone),) = solve(features, labels, 1.0)
        assert report.objective == pytest.approx(alone.objective, abs=8)
