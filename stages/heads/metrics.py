"""Metrics of predictions, with confidence intervals: arrays in, plain numbers out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from ..settings import Metric
from ..types import Float64Array, Indices
from .calibration import calibration_gaps, reliability
from .head import decide
from .intervals import average_precision_interval, f1_intervals, loss_intervals, share_intervals

RESAMPLES = 1000
MAX_MATRIX_CLASSES = 256
"""A confusion matrix of more classes is not kept: nobody reads it, and its size grows with their square."""
_COLUMNS = 16  # that are read at a time
_Array = npt.NDArray[Any]
"""float64; the type stubs of a weighted `np.bincount` say otherwise."""


def evaluate(
    labels: Indices,
    log_probabilities: Float64Array,
    groups: Indices,
    *,
    names: tuple[str, ...],
    seed: int = 0,
    resamples: int = RESAMPLES,
    thresholds: tuple[float, ...] | Float64Array | None = None,
) -> dict[str, Any]:
    """Score predictions.

    Args:
        labels: (rows,) int64, the true classes.
        log_probabilities: (rows, classes) float64.
        groups: (rows,) int64, equal for copies of one text. Intervals count texts and not rows, because copies of a
            text are not independent.
        names: The classes' names.
        seed: Seed of the resampling.
        resamples: Number of resamples for the intervals.
        thresholds: Of each class, or None; see `decide`. Calibration is always that of the most probable class.

    Returns:
        ``rows``; ``accuracy``, ``macro_f1``, ``weighted_f1`` (weighted by support), ``average_precision`` (see
        `mean_average_precision`), ``log_loss`` (in nats) and ``calibration_error`` (see `calibration_gaps`), each with
        its ``_interval``, [low, high] at 95%, which holds the score itself; ``reliability`` (see `reliability`);
        ``per_class``: precision and recall with their intervals, f1 and rows, by name;
        ``confusion_matrix`` [true][predicted], or None for more than 256 classes.

        As in scikit-learn, precision without a prediction and recall without a row are 0. Macro F1 is the mean over
        the classes that have a row or a prediction.
    """
    classes = len(names)
    predicted = decide(log_probabilities, thresholds, logarithms=True)
    scores, correct = _scores(labels, predicted, classes), labels == predicted
    by_class = {"precision": scores.precision, "recall": scores.recall}
    losses = -log_probabilities[np.arange(len(labels)), labels]
    probable = correct if thresholds is None else labels == log_probabilities.argmax(axis=1)
    gaps = calibration_gaps(probable, log_probabilities)
    matrix = None
    if classes <= MAX_MATRIX_CLASSES:
        matrix = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes).tolist()
    overall = {
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        "weighted_f1": scores.weighted_f1,
        "average_precision": mean_average_precision(labels, log_probabilities),
        "log_loss": float(losses.mean()),
        "calibration_error": float(np.abs(gaps.sum(axis=0)).sum() / len(labels)),
    }
    class_intervals = {
        name: share_intervals(correct, counted, groups, classes=classes).tolist()
        for name, counted in (("precision", predicted), ("recall", labels))
    }
    bounds = {
        "accuracy": share_intervals(correct, np.zeros_like(labels), groups, classes=1)[0],
        **f1_intervals(labels, predicted, groups, classes=classes, seed=seed, resamples=resamples),
        "average_precision": average_precision_interval(
            log_probabilities, lambda label: labels == label, groups, seed=seed, resamples=resamples
        ),
        **loss_intervals(log_probabilities, gaps, losses, groups, seed=seed, resamples=resamples),
    }
    return {
        "rows": len(labels),
        **overall,
        **{
            f"{name}_interval": [float(min(bound[0], overall[name])), float(max(bound[1], overall[name]))]
            for name, bound in bounds.items()
            if bound is not None  # some class has a row
        },
        "reliability": reliability(probable, np.exp(log_probabilities.max(axis=1))),
        "per_class": {
            name: {
                **{score: float(values[i]) for score, values in by_class.items()},
                **{f"{score}_interval": bounds[i] for score, bounds in class_intervals.items()},
                "f1": float(scores.f1[i]),
                "rows": int(scores.support[i]),
            }
            for i, name in enumerate(names)
        },
        "confusion_matrix": matrix,
    }


@dataclasses.dataclass(frozen=True)
class _Scores:
    """Scores by class, (classes,) float64, and over all classes. The support is the number of rows with the label."""

    support: _Array
    precision: _Array
    recall: _Array
    f1: _Array
    accuracy: float
    macro_f1: float
    weighted_f1: float


def _scores(labels: Indices, predicted: Indices, classes: int) -> _Scores:
    """Score predictions."""
    counts = (np.bincount(rows, minlength=classes) for rows in (labels[labels == predicted], labels, predicted))
    true_positives, support, predicted_count = (count.astype(np.float64) for count in counts)
    f1 = _ratio(2 * true_positives, support + predicted_count)
    return _Scores(
        support=support,
        precision=_ratio(true_positives, predicted_count),
        recall=_ratio(true_positives, support),
        f1=f1,
        accuracy=float(true_positives.sum() / support.sum()),
        macro_f1=float(f1[support + predicted_count > 0].mean()),
        weighted_f1=float((f1 * support).sum() / support.sum()),
    )


def plain_scores(labels: Indices, predicted: Indices, classes: int) -> dict[Metric, float]:
    """Accuracy and macro F1 without intervals; both arguments are (rows,) int64."""
    scores = _scores(labels, predicted, classes)
    return {Metric.ACCURACY: scores.accuracy, Metric.MACRO_F1: scores.macro_f1}


def mean_average_precision(labels: Indices, scores: Float64Array) -> float:
    """The mean, over the classes that have a row, of each one's average precision against all others.

    Average precision is the mean of the precisions at the ranks of the class's rows, as in scikit-learn: rows with
    equal scores share the rank of the last of them.

    Args:
        labels: (rows,) int64.
        scores: (rows, classes) float64; in each column the rows of its class should have the highest.
    """
    precisions, present = [], np.unique(labels)
    for place, label in enumerate(present):
        if place % _COLUMNS == 0:  # of a file, single columns would be slow to read
            columns = -scores[:, present[place : place + _COLUMNS]].T
        ranked, first = np.unique(columns[place % _COLUMNS], return_inverse=True)
        rows, hits = np.bincount(first), np.bincount(first, labels == label, len(ranked))
        precisions.append(float((hits * np.cumsum(hits) / np.cumsum(rows)).sum() / hits.sum()))
    return float(np.mean(precisions))


def _ratio(part: _Array, whole: _Array) -> Float64Array:
    ratio: Float64Array = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return ratio
