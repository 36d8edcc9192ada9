"""Metrics against scikit-learn; their intervals are tested in test_intervals.py."""

from __future__ import annotations

import numpy as np
import pytest
from headstart.stages.heads.calibration import calibration_gaps
from headstart.stages.heads.metrics import evaluate, mean_average_precision
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 1000))
def test_scores_equal_scikit_learns(rows: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    names = tuple(f"c{i}" for i in range(classes))
    probabilities = rng.dirichlet(np.ones(classes), size=rows)
    predicted = probabilities.argmax(axis=1)
    found = evaluate(labels, np.log(probabilities), np.arange(rows), names=names, resamples=40)
    numbers = list(range(classes))
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=numbers, zero_division=0
    )
    for i, name in enumerate(names):
        ours = found["per_class"][name]
        assert np.allclose(
            [ours["precision"], ours["recall"], ours["f1"], ours["rows"]], [precision[i], recall[i], f1[i], support[i]]
        )
        for score in ("precision", "recall"):
            low, high = ours[f"{score}_interval"]
            assert 0 <= low <= ours[score] <= high <= 1
    assert np.isclose(found["accuracy"], sk.accuracy_score(labels, predicted))
    assert np.isclose(found["weighted_f1"], sk.f1_score(labels, predicted, average="weighted", zero_division=0))
    assert np.isclose(found["log_loss"], sk.log_loss(labels, probabilities, labels=numbers))
    present = np.unique(labels)
    precisions = [sk.average_precision_score(labels == label, probabilities[:, label]) for label in present]
    assert np.isclose(found["average_precision"], np.mean(precisions))
    for score in ("accuracy", "macro_f1", "weighted_f1", "average_precision", "log_loss", "calibration_error"):
        low, high = found[f"{score}_interval"]
        assert 0 <= low <= found[score] <= high
    assert np.isclose(found["macro_f1"], sk.f1_score(labels, predicted, average="macro"))
    assert found["confusion_matrix"] == sk.confusion_matrix(labels, predicted, labels=numbers).tolist()


def test_a_confusion_matrix_of_many_classes_is_left_out() -> None:
    labels = np.arange(300)
    found = evaluate(labels, np.log(np.eye(300) + 1e-9), labels, names=tuple(map(str, labels)))
    assert found["confusion_matrix"] is None
    assert found["accuracy"] == 1


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    """Compared with the definition, bin by bin; it is near zero if the labels are drawn from the probabilities."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5] * 4, size=20_000)
    honest = np.array([rng.choice(4, p=row) for row in probabilities])
    wrong = rng.integers(4, size=20_000)
    for labels in (honest, wrong):
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        expected = 0.0
        for low in np.arange(15) / 15:
            inside = (confidence > low) & (confidence <= low + 1 / 15)
            if inside.any():
                expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        found = evaluate(labels, np.log(probabilities), np.arange(20_000), names=tuple("abcd"), resamples=1)
        found = found["calibration_error"]
        assert np.isclose(found, expected)
        assert found < 0.02 if labels is honest else found > 0.3


def test_a_row_has_its_gap_in_one_bin() -> None:
    gaps = calibration_gaps(np.array([True, False]), np.log([[0.9, 0.1], [0.9, 0.1]]))
    assert [np.flatnonzero(row).tolist() for row in gaps] == [[13], [13]]
    np.testing.assert_allclose(gaps[:, 13], [0.1, -0.9])


def test_average_precision_is_scikit_learns_also_with_ties() -> None:
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 4, 300), rng.integers(0, 9, (300, 4)).astype(np.float64)
    expected = sk.average_precision_score(np.eye(4)[labels], scores, average="macro")
    assert mean_average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)
