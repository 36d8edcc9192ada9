"""Ridge regression against scikit-learn's, and its predictions for rows that are left out against refits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from feature_rows import feature_rows
from headstart.stages.heads.ridge import RidgeSolver
from headstart.stages.threads import open_threads
from sklearn.linear_model import Ridge, RidgeCV

PENALTIES = (1e-3, 0.1, 1.0, 30.0)


def rows_of(kind: str) -> tuple[Any, Any, Any]:
    """Features (rows, width) float32, targets and groups. Rows of a group have the same features."""
    rng = np.random.default_rng(0)
    rows, width = (40, 90) if kind == "more columns than rows" else (300, 12)
    features = rng.normal(size=(rows, width)) * np.logspace(0, -2, width) + 5
    if kind == "constant and equal columns":
        features[:, 2], features[:, 5] = 0.25, features[:, 4]
    targets = 1e3 + features @ rng.normal(size=width) + rng.normal(size=rows)
    groups = rng.permutation(rows)
    if kind == "copies":
        groups = rng.integers(0, 60, size=rows)
        features = features[groups]
    return features.astype(np.float32), targets, groups


KINDS = ["plain", "more columns than rows", "constant and equal columns", "copies"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_is_that_of_scikit_learn(kind: str) -> None:
    features, targets, groups = rows_of(kind)
    wide = features.astype(np.float64)
    with open_threads() as threads:
        solver = RidgeSolver(feature_rows(features), targets, groups, threads=threads)
        found = [solver.solve(l2) for l2 in PENALTIES]
    for l2, (weights, biases, report) in zip(PENALTIES, found, strict=True):
        weight, bias = weights[0, 0], biases[0, 0]
        model = Ridge(alpha=l2, solver="svd").fit(wide, targets)
        penalty = l2 * (model.coef_**2).sum()
        least = ((model.predict(wide) - targets) ** 2).sum() + penalty
        assert report.objective == pytest.approx(least, rel=1e-9) and report.penalty == pytest.approx(penalty, rel=1e-7)
        np.testing.assert_allclose(wide @ weight + bias, model.predict(wide), rtol=0, atol=1e-8)
        np.testing.assert_allclose(weight, model.coef_, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_or_a_fold_that_is_left_out_is_predicted_by_all_others(kind: str) -> None:
    """Compared with scikit-learn, fitted again without each of them. No copy of a text stays behind."""
    features, targets, groups = rows_of(kind)
    wide, fold = features.astype(np.float64), groups % 4 + 1
    with open_threads() as threads:
        solver = RidgeSolver(feature_rows(features), targets, groups, threads=threads)
        found = solver.leave_one_out(PENALTIES), solver.leave_folds_out(PENALTIES, fold)
    for predictions, parts in zip(found, (groups, fold), strict=True):
        assert predictions.shape == (len(PENALTIES), len(targets))
        for l2, row in zip(PENALTIES, predictions, strict=True):
            for part in np.unique(parts)[:: max(1, len(np.unique(parts)) // 20)]:
                held = parts == part
                model = Ridge(alpha=l2, solver="svd").fit(wide[~held], targets[~held])
                np.testing.assert_allclose(row[held], model.predict(wide[held]), rtol=0, atol=1e-7)


def test_the_penalty_with_the_least_error_is_that_of_ridge_cv() -> None:
    features, targets, groups = rows_of("more columns than rows")
    model = RidgeCV(alphas=PENALTIES, store_cv_results=True).fit(features.astype(np.float64), targets)
    with open_threads() as threads:
        predictions = RidgeSolver(feature_rows(features), targets, groups, threads=threads).leave_one_out(PENALTIES)
    errors = (predictions - targets) ** 2
    np.testing.assert_allclose(errors, model.cv_results_.T, rtol=1e-7)
    assert PENALTIES[errors.mean(axis=1).argmin()] == model.alpha_


def test_the_result_does_not_depend_on_how_many_threads_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    features, targets, groups = rng.normal(size=(9000, 3)).astype(np.float32), rng.normal(size=9000), np.arange(9000)
    found = []
    for workers in (1, 3):
        monkeypatch.setattr("torch.get_num_threads", lambda workers=workers: workers)
        with open_threads() as threads:
            found.append(RidgeSolver(feature_rows(features), targets, groups, threads=threads).leave_one_out(PENALTIES))
    assert np.array_equal(*found)
