"""The path over penalties: out-of-fold logits against heads that scikit-learn fits fold by fold."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from headstart.stages.heads import logistic_batch, logistic_path
from headstart.stages.heads.dataset import Dataset, scaled
from headstart.stages.heads.logistic import LogisticSolver
from headstart.stages.heads.logistic_path import LogisticPath, PathPoint
from headstart.stages.settings import ClassWeight, Scaling, TrainSettings
from headstart.stages.threads import open_threads


@pytest.mark.parametrize("scaling", Scaling)
@pytest.mark.parametrize("class_weight", ClassWeight)
def test_each_row_gets_the_logits_of_the_head_that_did_not_see_it(scaling: Scaling, class_weight: ClassWeight) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    features = (rng.normal(size=(200, 6)) * [1, 2, 3, 1, 1, 1] + np.eye(3, 6)[labels] + 1).astype(np.float32)
    index = rng.permutation(200)[:150]
    fold = rng.integers(0, 4, 150)  # 0 is in no fold
    train = Dataset(features=features, labels=labels, index=index)
    with open_threads() as threads:
        path = LogisticPath(
            train,
            scaling=scaling,
            fold=fold,
            folds=3,
            classes=3,
            class_weight=class_weight,
            memory=None,
            threads=threads,
        )
        points = list(path.solve([0.1, 10.0]))
    assert [point.l2 for point in points] == [10.0, 0.1]
    rows = features[index]
    if scaling is Scaling.NORMALIZED:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for point in points:
        assert point.converged and point.logits.shape == (150, 3) and point.logits.dtype == np.float32
        for number in (1, 2, 3):
            kept, out = fold != number, fold == number
            scale = rows[kept].std(0) if scaling is Scaling.STANDARDIZED else 1.0
            weight = None if class_weight is ClassWeight.NONE else "balanced"
            model = linear_model.LogisticRegression(C=1 / point.l2, class_weight=weight, tol=1e-8, max_iter=10_000)
            model.fit(rows[kept] / scale, labels[index][kept])
            expected = model.predict_log_proba(rows[out] / scale)
            logits = point.logits[out].astype(np.float64)
            found = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            np.testing.assert_allclose(found, expected, atol=0.01)  # near enough to choose by


def solve(features: Any, labels: Any, fold: Any, l2s: list[float], **options: Any) -> list[PathPoint]:
    rows = Dataset(features=features, labels=labels, index=np.arange(len(labels)))
    plain = {"scaling": Scaling.NONE, "class_weight": ClassWeight.NONE, "memory": None}
    with open_threads() as threads:
        path = LogisticPath(
            rows, fold=fold, folds=fold.max(), classes=labels.max() + 1, threads=threads, **(plain | options)
        )
        return list(path.solve(l2s))


def correlated(rows: int, width: int) -> tuple[Any, Any]:
    """Features (rows, width) float32 whose spread falls by a thousand, with one constant column, and three classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=rows)
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
    features = rng.normal(size=(rows, width)) * np.logspace(0, -3, width) + np.eye(3, width)[labels] * 0.5
    features = features @ rotation + 1
    features[:, 1] = 0.25
    return features.astype(np.float32), labels


@pytest.mark.parametrize("scaling", Scaling)
@pytest.mark.parametrize("class_weight", ClassWeight)
def test_heads_of_a_path_are_those_of_the_folds_alone(
    scaling: Scaling, class_weight: ClassWeight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the exact solver's tolerance, and in small batches."""
    monkeypatch.setattr(logistic_path, "_LIMITS", dataclasses.replace(logistic_path._LIMITS, tolerance=1e-9))
    monkeypatch.setattr(logistic_path, "_BLOCK_COLUMNS", 24)
    features, labels = correlated(400, 12)
    labels = np.where(np.arange(400) < 150, 0, labels)
    fold = np.arange(400) * 7 % 4  # 0 is in no fold
    l2s = [100.0, 30.0, 20.0, 1.0, 0.8, 0.6, 0.01]
    points = solve(features, labels, fold, l2s, scaling=scaling, class_weight=class_weight)
    train = scaled(Dataset(features=features, labels=labels, index=np.arange(400)), scaling)
    settings = TrainSettings(solver="exact", standardize=scaling is Scaling.STANDARDIZED, class_weight=class_weight)
    for number in (1, 2, 3):
        kept = dataclasses.replace(train, index=np.flatnonzero(fold != number))
        out = np.flatnonzero(fold == number)
        with open_threads() as threads:
            solver = LogisticSolver(kept, classes=3, settings=settings, threads=threads)
            for point in points:
                parameters, _ = solver.solve(point.l2)
                expected = train.take(out) @ parameters["weight"].T + parameters["bias"]
                found = point.logits[out]
                np.testing.assert_allclose(centered(found), centered(expected), atol=1e-3)
    assert all(point.converged and not point.logits[fold == 0].any() for point in points)


def test_a_path_is_near_enough_to_choose_by() -> None:
    """The out-of-fold loss of each penalty is that of the optimum to 0.001, as the tolerance promises."""
    features, labels = correlated(600, 20)
    fold = np.arange(600) % 5 + 1
    l2s = np.logspace(2, -4, 25).tolist()
    exact = dataclasses.replace(logistic_path._LIMITS, tolerance=1e-9)
    points = solve(features, labels, fold, l2s)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logistic_path, "_LIMITS", exact)
        best = solve(features, labels, fold, l2s)
    for point, each in zip(points, best, strict=True):
        ours, theirs = (loss(logits, labels) for logits in (point.logits, each.logits))
        assert abs(ours - theirs) < 1e-3


def loss(logits: Any, labels: Any) -> float:
    wide = logits.astype(np.float64)
    return float((np.log(np.exp(wide).sum(1)) - wide[np.arange(len(labels)), labels]).mean())


def centered(logits: Any) -> Any:
    """One number may be added to all logits of a row: nothing depends on it."""
    return logits - logits.mean(1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_path_over_streamed_rows_is_the_same(dtype: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=1000)
    features = (rng.normal(size=(3, 40))[labels] * 0.1 + rng.normal(size=(1000, 40))).astype(dtype)
    fold = np.arange(1000) % 3 + 1
    memory, streamed = (solve(features, labels, fold, [10.0, 1.0], memory=bound) for bound in (1 << 30, 1 << 16))
    for one, other in zip(memory, streamed, strict=True):
        np.testing.assert_allclose(centered(one.logits), centered(other.logits), atol=1e-5)
        assert one.converged and other.converged


@pytest.mark.parametrize("scaling", [Scaling.NONE, Scaling.STANDARDIZED])
def test_separable_rows_do_not_diverge(scaling: Scaling) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = (np.eye(3)[labels][:, [0, 1, 2, 0]] * 5 + rng.normal(size=(60, 4)) * 0.1).astype(np.float32)
    points = solve(features, labels, np.arange(60) % 2 + 1, [100.0, 1.0, 1e-2, 1e-4, 1e-6], scaling=scaling)
    for point in points:
        assert point.converged and (point.logits.argmax(1) == labels).all()
        assert np.abs(point.logits).max() < 50


def test_many_classes_use_the_diagonal_of_their_covariance_and_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = correlated(300, 8)
    fold = np.arange(300) % 2 + 1
    full = solve(features, labels, fold, [10.0, 0.1])
    monkeypatch.setattr(logistic_batch, "_FULL_CLASSES", 2)
    diagonal = solve(features, labels, fold, [10.0, 0.1])
    for one, other in zip(full, diagonal, strict=True):
        np.testing.assert_allclose(centered(one.logits), centered(other.logits), atol=0.015)
        assert other.converged


def test_wide_features_have_few_directions_and_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = correlated(300, 24)
    fold = np.arange(300) % 2 + 1
    full = solve(features, labels, fold, [10.0, 0.1])
    monkeypatch.setattr(logistic_batch, "_FULL_WIDTH", 8)
    monkeypatch.setattr(logistic_batch, "_RANK", 8)
    few = solve(features, labels, fold, [10.0, 0.1])
    for one, other in zip(full, few, strict=True):
        np.testing.assert_allclose(centered(one.logits), centered(other.logits), atol=0.01)
        assert other.converged


def test_a_fold_may_lack_a_class() -> None:
    """A class of one fold's rows alone is unknown to that fold's head, which says next to nothing of it; the heads of
    other folds have it."""
    features, labels = correlated(300, 8)
    fold = np.arange(300) % 3 + 1
    labels = np.where(fold == 2, labels, labels % 2)  # class 2 is in fold 2 alone
    for point in solve(features, labels, fold, [10.0, 0.1]):
        probabilities = np.exp(point.logits - point.logits.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        assert point.converged and np.isfinite(point.logits).all()
        assert probabilities[fold == 2, 2].max() < 1e-3 < probabilities[fold != 2, 2].mean()
