"""One-vs-rest logistic regression against scikit-learn's, label by label; labels that nobody or everybody has."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from feature_rows import feature_rows
from headstart.stages.heads.one_vs_rest import OneVsRestSolver, held_out_logits
from headstart.stages.settings import ClassWeight
from headstart.stages.threads import open_threads
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier


def problem(kind: str) -> tuple[Any, Any]:
    """Features (rows, width) float32, centered, and targets (rows, 6) uint8, some of them rare."""
    rng = np.random.default_rng(0)
    rows, width = (50, 120) if kind == "more columns than rows" else (400, 20)
    features = rng.normal(size=(rows, width)) * np.logspace(0, -2, width)
    if kind == "constant and equal columns":
        features[:, 2], features[:, 5] = 0.25, features[:, 4]
    features = (features - features.mean(0)).astype(np.float32)
    logits = features @ rng.normal(size=(width, 6)) * 3 + [0, 0, 1, -2, -3, 3]
    return features, (logits + rng.logistic(size=logits.shape) > 0).astype(np.uint8)


def objectives(features: Any, targets: Any, weight: Any, bias: Any, l2: float, weights: Any = 1.0) -> Any:
    """Each label's objective in float64, from its definition: (labels,)."""
    margins = features.astype(np.float64) @ weight.T + bias
    losses = np.logaddexp(0, np.where(targets, -margins, margins))
    return (losses * weights).sum(0) + l2 / 2 * (weight**2).sum(1)


def sklearn(features: Any, targets: Any, l2: float, **options: Any) -> tuple[Any, Any]:
    model = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-12, max_iter=500, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = OneVsRestClassifier(model).fit(features.astype(np.float64), targets).estimators_
    return np.concatenate([one.coef_ for one in fitted]), np.concatenate([one.intercept_ for one in fitted])


def solve(features: Any, targets: Any, *l2s: float, **options: Any) -> Any:
    with open_threads() as threads:
        solver = OneVsRestSolver(feature_rows(features), targets, threads=threads, **options)
        return [solver.solve(l2) for l2 in l2s]


@pytest.mark.parametrize("class_weight", ClassWeight)
@pytest.mark.parametrize("kind", ["plain", "more columns than rows", "constant and equal columns"])
def test_every_label_has_the_optimum_of_scikit_learn(kind: str, class_weight: ClassWeight) -> None:
    features, targets = problem(kind)
    weights: Any = 1.0
    options: dict[str, Any] = {}
    if class_weight is ClassWeight.BALANCED:
        positive = targets.mean(0)
        options, weights = {"class_weight": "balanced"}, 0.5 / np.where(targets, positive, 1 - positive)
    l2s = (30.0, 1.0, 0.01)
    for l2, (weight, bias, report) in zip(l2s, solve(features, targets, *l2s, class_weight=class_weight), strict=True):
        theirs = objectives(features, targets, *sklearn(features, targets, l2, **options), l2, weights)
        ours = objectives(features, targets, weight[0], bias[0], l2, weights)
        np.testing.assert_array_less(ours, theirs * (1 + 1e-9))
        assert report.converged and report.l2 == l2
        assert report.objective == pytest.approx(ours.sum(), rel=1e-7)


def test_labels_in_parts_have_the_same_optima() -> None:
    features, targets = problem("plain")
    whole, parts = (solve(features, targets, 0.1, memory=memory)[0] for memory in (None, 1 << 12))
    ours, theirs = (objectives(features, targets, each[0][0], each[1][0], 0.1) for each in (parts, whole))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert parts[2].objective == pytest.approx(ours.sum(), rel=1e-7) and parts[2].passes > whole[2].passes


def test_each_fold_is_solved_without_its_rows() -> None:
    features, targets = problem("plain")
    fold = np.arange(len(features)) * 7 % 4  # 0: in no fold
    ((weights, biases, _),) = solve(features, targets, 0.5, fold=fold, folds=3)
    logits = held_out_logits(feature_rows(features), fold, weights, biases)
    assert not logits[fold == 0].any()
    for held in (1, 2, 3):
        out = fold == held
        weight, bias = sklearn(features[~out], targets[~out], 0.5)
        np.testing.assert_allclose(logits[out], features[out] @ weight.T + bias, atol=1e-3)
        ours = objectives(features[~out], targets[~out], weights[held - 1], biases[held - 1], 0.5)
        np.testing.assert_array_less(ours, objectives(features[~out], targets[~out], weight, bias, 0.5) * (1 + 1e-9))


def test_a_label_of_no_row_or_of_every_row_gets_a_constant() -> None:
    features, targets = problem("plain")
    targets[:, 1], targets[:, 4] = 0, 1
    with open_threads() as threads:
        solver = OneVsRestSolver(feature_rows(features), targets, threads=threads)
        weight, bias, report = solver.solve(1.0)
    assert solver.constant.tolist() == [1, 4] and report.converged
    np.testing.assert_allclose(weight[0, [1, 4]], 0, atol=1e-6)
    np.testing.assert_allclose(bias[0, [1, 4]], [np.log(0.5 / 400), np.log(400 / 0.5)], atol=1e-6)
    others = [0, 2, 3, 5]
    alone, _, _ = solve(features, targets[:, others], 1.0)[0]
    np.testing.assert_allclose(weight[0, others], alone[0], atol=1e-4)
