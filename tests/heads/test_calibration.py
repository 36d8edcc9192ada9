"""Calibration: per-class maps are at their optimum, folds choose the method, and bins are scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from headstart.stages.heads.calibration import (
    LogitMap,
    choose_map,
    fit_map,
    fit_per_class,
    fit_temperature,
    map_by_folds,
    reliability,
)
from headstart.stages.settings import Calibration
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve


def said(rows: int, classes: int, *, seed: int = 0, skew: float = 1.0) -> tuple[Any, Any]:
    """Logits that are too large, and in other proportions, than those that the labels come from."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(rows, classes)) * 2
    labels = np.array([rng.choice(classes, p=p) for p in np.exp(log_softmax(true, axis=1))])
    scale, shift = 1 + skew * rng.uniform(1, 3, classes), skew * rng.normal(size=classes)
    return (true * scale + shift).astype(np.float32), labels


def log_loss(logits: Any, labels: Any) -> float:
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize(("rows", "classes"), [(400, 2), (300, 7), (12, 3)])
def test_a_per_class_map_is_at_its_optimum(rows: int, classes: int) -> None:
    logits, labels = said(rows, classes)
    temperature = fit_temperature(logits, labels)

    def objective(point: Any) -> float:
        scale, shift = point.reshape(2, classes)
        penalty = ((temperature * scale - 1) ** 2).sum() + (shift**2).sum()
        return log_loss(logits.astype(np.float64) * scale + shift, labels) * rows + float(penalty) / 2

    found = fit_per_class(logits, labels)
    assert found.scale is not None and found.shift is not None and found.temperature == 1
    start = np.concatenate([np.full(classes, 1 / temperature), np.zeros(classes)])
    best = minimize(objective, start, method="BFGS", options={"gtol": 1e-7})
    assert objective(np.concatenate([found.scale, found.shift])) <= best.fun * (1 + 1e-9)
    np.testing.assert_allclose(np.concatenate([found.scale, found.shift]), best.x, atol=1e-3)


def test_a_map_of_classes_that_are_told_apart_is_finite() -> None:
    labels = np.repeat([0, 1, 2], [20, 20, 1])
    logits = (100 * np.eye(3)[labels]).astype(np.float32)
    found = fit_per_class(logits, labels)
    assert np.isfinite(found(logits)).all() and (found(logits).argmax(1) == labels).all()


@pytest.mark.parametrize(("skew", "rows", "chosen"), [(1.0, 1500, Calibration.PER_CLASS), (0.0, 60, Calibration.NONE)])
def test_folds_choose_the_method(skew: float, rows: int, chosen: Calibration) -> None:
    logits, labels = said(rows, 3, skew=skew)
    fold = np.arange(rows) % 5 + 1
    method, found, losses = choose_map(Calibration.AUTO, logits, labels, fold)
    assert min(losses, key=lambda tried: losses[tried]) is chosen is method
    np.testing.assert_array_equal(found(logits), fit_map(chosen, logits, labels)(logits))
    for method, loss in losses.items():
        parts = [fit_map(method, logits[fold != f], labels[fold != f])(logits[fold == f]) for f in range(1, 6)]
        ordered = np.concatenate([np.flatnonzero(fold == f) for f in range(1, 6)])
        assert loss == pytest.approx(log_loss(np.concatenate(parts), labels[ordered]))
    assert choose_map(Calibration.NONE, logits, labels, fold) == (Calibration.NONE, LogitMap(), {})


def test_no_row_is_calibrated_by_a_map_that_was_fitted_to_it() -> None:
    logits, labels = said(90, 3)
    fold = np.arange(90) // 2  # 45 folds, some of which share a map
    mapped = map_by_folds(Calibration.PER_CLASS, logits, labels, fold)
    for row in range(0, 90, 9):
        others = labels.copy()
        others[row] = (labels[row] + 1) % 3
        np.testing.assert_array_equal(map_by_folds(Calibration.PER_CLASS, logits, others, fold)[row], mapped[row])


def test_bins_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.34, 1, size=500)
    correct = rng.uniform(size=500) < confidence**2
    bins = [each for each in reliability(correct, confidence) if each["rows"]]
    accuracies, confidences = calibration_curve(correct, confidence, n_bins=15)
    np.testing.assert_allclose([each["accuracy"] for each in bins], accuracies)
    np.testing.assert_allclose([each["confidence"] for each in bins], confidences)
    assert sum(each["rows"] for each in bins) == 500
    assert reliability(correct, confidence)[0] == {
        "from": 0,
        "to": 1 / 15,
        "rows": 0,
        "confidence": None,
        "accuracy": None,
    }
