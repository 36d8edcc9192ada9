"""Calibration: per-class maps are at their optimum, folds choose the method, and bins are scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from headstart.stages.heads.calibration import (
    fit_label_map,
    fit_ordinal_map,
    fit_per_class,
    fit_temperature,
    reliability,
)
from headstart.stages.settings import Calibration
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax
from sklearn.calibration import _sigmoid_calibration, calibration_curve


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


@pytest.mark.parametrize("kind", ["labels", "order"])
def test_a_temperature_of_each_kind_is_at_its_optimum(kind: str) -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(500, 1)) * 2 + [1.5, 0, -1]
    above = (1 / (1 + np.exp(-true)) > (rng.random((500, 3)) if kind == "labels" else rng.random((500, 1)))).astype(
        np.uint8
    )
    logits = (3 * true).astype(np.float32)
    if kind == "labels":
        found = fit_label_map(Calibration.TEMPERATURE, logits, above)
        losses = [np.logaddexp(0, np.where(above, -1, 1) * logits / t).mean() for t in (1, 2.7, 3.3)]
        best = np.logaddexp(0, np.where(above, -1, 1) * logits / found.temperature).mean()
    else:
        labels, rows = above.sum(axis=1).astype(np.int64), np.arange(500)
        found = fit_ordinal_map(Calibration.TEMPERATURE, logits, labels)

        def loss(temperature: float) -> float:
            chances = 1 / (1 + np.exp(-logits.astype(float) / temperature))
            bounds = np.concatenate([np.ones((500, 1)), chances, np.zeros((500, 1))], axis=1)
            return float(-np.log(bounds[rows, labels] - bounds[rows, labels + 1]).mean())

        losses, best = [loss(t) for t in (1, 2.7, 3.3)], loss(found.temperature)
        assert minimize_scalar(loss, bounds=(1, 9), method="bounded").x == pytest.approx(found.temperature, rel=1e-4)
    assert best < min(losses) and 2.5 < found.temperature < 3.5


def test_platts_scaling_of_labels_is_that_of_scikit_learn() -> None:
    """Also where the logits say the opposite, and of labels that are told apart, or that no row has."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(300, 5))
    targets = (true + rng.logistic(size=(300, 5)) > [0, 1, 2, 0, 99]).astype(np.uint8)
    targets[:, 3] = true[:, 3] > 0
    logits = (true * [4, 0.5, -1, 9, 1] + [1, 2, 0, 0, 0]).astype(np.float32)
    found = fit_label_map(Calibration.PER_CLASS, logits, targets)
    for label in range(5):
        a, b = _sigmoid_calibration(logits[:, label].astype(float), targets[:, label])
        expected = 1 / (1 + np.exp(a * logits[:, label] + b))
        np.testing.assert_allclose(1 / (1 + np.exp(-found(logits)[:, label])), expected, atol=1e-4)


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
