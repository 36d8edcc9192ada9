"""Metrics of predictions, with confidence intervals: arrays in, plain numbers out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from ..types import Float64Array, Indices

RESAMPLES = 1000
_MAX_DRAWS = 200_000_000
CALIBRATION_BINS = 15
MAX_MATRIX_CLASSES = 256
"""A confusion matrix of more classes is not kept: nobody reads it, and its size grows with their square."""
_95_PERCENT = [2.5, 97.5]
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
) -> dict[str, Any]:
    """Score predictions.

    Args:
        labels: (rows,) int64, the true classes.
        log_probabilities: (rows, classes) float64; the largest of a row is the predicted class.
        groups: (rows,) int64, equal for copies of one text. Intervals resample texts and not rows, because copies of a
            text are not independent.
        names: The classes' names.
        seed: Seed of the resampling.
        resamples: Number of resamples for the intervals.

    Returns:
        ``rows``; ``accuracy``, ``macro_f1``, ``weighted_f1`` (weighted by support), ``log_loss`` (in nats) and
        ``calibration_error`` (see `calibration_gaps`), each with its ``_interval``, [low, high] at 95% by the
        percentile bootstrap over distinct texts; ``per_class``: precision and recall with their intervals, f1 and
        rows, by name; ``confusion_matrix`` [true][predicted], or None for more than 256 classes.

        As in scikit-learn, precision without a prediction and recall without a row are 0. Macro F1 is the mean over
        the classes that have a row or a prediction.
    """
    classes = len(names)
    predicted: Indices = log_probabilities.argmax(axis=1)
    scores = _scores(labels, predicted, classes)
    by_class = {"precision": scores.precision, "recall": scores.recall}
    losses = -log_probabilities[np.arange(len(labels)), labels]
    gaps = calibration_gaps(labels, log_probabilities)
    intervals = bootstrap(labels, predicted, groups, classes=classes, seed=seed, resamples=resamples)
    intervals |= bootstrap_means(losses, gaps, groups, seed=seed, resamples=resamples)
    matrix = None
    if classes <= MAX_MATRIX_CLASSES:
        matrix = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes).tolist()
    overall = {
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        "weighted_f1": scores.weighted_f1,
        "log_loss": float(losses.mean()),
        "calibration_error": float(np.abs(gaps.sum(axis=0)).sum() / len(labels)),
    }
    return {
        "rows": len(labels),
        **overall,
        **{f"{name}_interval": intervals[name] for name in overall},
        "per_class": {
            name: {
                **{score: float(values[i]) for score, values in by_class.items()},
                **{f"{score}_interval": intervals[score][i] for score in by_class},
                "f1": float(scores.f1[i]),
                "rows": int(scores.support[i]),
            }
            for i, name in enumerate(names)
        },
        "confusion_matrix": matrix,
    }


def calibration_gaps(labels: Indices, log_probabilities: Float64Array) -> Float64Array:
    """Each row's correctness (0 or 1) minus its confidence, in the column of the confidence's bin: (rows, 15) float64.

    The expected calibration error is the sum over the bins of |sum over the rows|, divided by the number of rows, with
    15 bins of equal width (Guo et al., On Calibration of Modern Neural Networks, 2017).
    """
    confidence = np.exp(log_probabilities.max(axis=1))
    correct = log_probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.zeros((len(labels), CALIBRATION_BINS))
    gaps[np.arange(len(labels)), bins] = correct - confidence
    return gaps


def bootstrap_means(
    losses: Float64Array, gaps: Float64Array, groups: Indices, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, list[float]]:
    """95% percentile intervals of ``log_loss`` and ``calibration_error``, resampling whole groups with replacement.

    Losses differ from row to row, so every text is drawn on its own. With more than 200,000 texts there are fewer than
    1,000 resamples, but at least 200. The calibration error of a resample is slightly larger than the error of the
    rows themselves, because absolute values do not average out.
    """
    _, group = np.unique(groups, return_inverse=True)
    texts = int(group.max()) + 1
    columns = np.column_stack([gaps, losses, np.ones(len(losses))])
    sums = np.zeros((texts, columns.shape[1]))
    np.add.at(sums, group, columns)
    rng = np.random.default_rng(seed)
    resamples = max(min(resamples, 200), min(resamples, _MAX_DRAWS // texts))
    draws = (np.bincount(rng.integers(texts, size=texts), minlength=texts) for _ in range(resamples))
    drawn = np.stack([draw.astype(np.float64) @ sums for draw in draws])
    errors = np.abs(drawn[:, :-2]).sum(axis=1) / drawn[:, -1]
    means = drawn[:, -2] / drawn[:, -1]
    return {
        name: np.percentile(values, _95_PERCENT).tolist()
        for name, values in (("log_loss", means), ("calibration_error", errors))
    }


def bootstrap(
    labels: Indices, predicted: Indices, groups: Indices, *, classes: int, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """95% percentile intervals, resampling whole groups with replacement.

    The method is Efron and Tibshirani's (An Introduction to the Bootstrap, 1993, chapter 13), with clusters as the
    unit (chapter 8). Groups with the same labels and predictions count the same in every score. So the number of
    groups of each kind is drawn, from one multinomial distribution, and the cost does not grow with the rows.

    Returns:
        ``accuracy``, ``macro_f1`` and ``weighted_f1``: [low, high]; ``precision`` and ``recall``: (classes, 2), as
        lists.
    """
    cells, kinds, kind_counts = _group_kinds(labels, predicted, groups)
    texts = kind_counts.sum()
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(resamples):
        drawn = rng.multinomial(texts, kind_counts / texts)  # (kinds,)
        scores = _scores(cells[:, 0], cells[:, 1], classes, drawn[kinds] * cells[:, 2])
        overall = [scores.accuracy, scores.macro_f1, scores.weighted_f1]
        samples.append(np.concatenate([overall, scores.precision, scores.recall]))
    bounds = np.percentile(samples, _95_PERCENT, axis=0).T.tolist()  # (3 + 2 x classes) of [low, high]
    overall_bounds = dict(zip(("accuracy", "macro_f1", "weighted_f1"), bounds[:3], strict=True))
    return {**overall_bounds, "precision": bounds[3 : 3 + classes], "recall": bounds[3 + classes :]}


def _group_kinds(labels: Indices, predicted: Indices, groups: Indices) -> tuple[Indices, Indices, Indices]:
    """Sort groups into kinds: groups whose rows have the same labels and predictions.

    Returns:
        Cells (cells, 3): a label, a prediction, and the number of rows in the group that have both; kinds (cells,):
        each cell's kind of group; counts (kinds,): the groups of each kind.
    """
    pairs, rows = np.unique(np.stack([groups, labels, predicted], axis=1), axis=0, return_counts=True)
    # Most groups have one cell. A group with several cells is a kind of its own, and is told apart by its number.
    _, first, group, sizes = np.unique(pairs[:, 0], return_index=True, return_inverse=True, return_counts=True)
    own_kind = np.where(sizes[group] == 1, -1, group)
    stacked = np.stack([pairs[:, 1], pairs[:, 2], rows, own_kind], axis=1)
    cells, cell = np.unique(stacked, axis=0, return_inverse=True)
    key = np.where(cells[:, 3] < 0, -1 - np.arange(len(cells)), cells[:, 3])
    _, kinds = np.unique(key, return_inverse=True)
    counts = np.bincount(kinds[cell.reshape(-1)[first]], minlength=kinds.max() + 1)
    return cells[:, :3], kinds, counts


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


def _scores(labels: Indices, predicted: Indices, classes: int, weights: Indices | None = None) -> _Scores:
    """Score predictions; rows may have weights."""
    weights = np.ones(len(labels), np.int64) if weights is None else weights
    correct = labels == predicted
    true_positives = np.bincount(labels[correct], weights[correct], classes)
    support, predicted_count = (np.bincount(numbers, weights, classes) for numbers in (labels, predicted))
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


def _ratio(part: _Array, whole: _Array) -> Float64Array:
    ratio: Float64Array = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return ratio
