"""How good predictions are, and how sure that is. Plain arrays only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Counts = npt.NDArray[Any]

Scores = npt.NDArray[np.float64]

RESAMPLES = 1000
_DRAWS = 200_000_000
CALIBRATION_BINS = 15
MOST_CLASSES_OF_A_MATRIX = 256
"""A confusion matrix of more classes is not kept: nobody reads it, and its size grows with the square."""


def evaluate(
    labels: Indices,
    log_probabilities: Scores,
    groups: Indices,
    *,
    names: tuple[str, ...],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Score predictions.

    Args:
        labels: (rows,) int64, the true classes.
        log_probabilities: (rows, classes) float64; the largest of a row is the class that is predicted.
        groups: (rows,) int64, equal for copies of one text: intervals resample texts, not rows, because copies
            say the same thing twice.
        names: The classes' names.
        seed: Of the resampling.
        resamples: How often to resample for the intervals.

    Returns:
        ``rows``; ``accuracy``, ``macro_f1``, ``weighted_f1`` (by the rows of a class), ``log_loss`` (in nats) and
        ``calibration_error`` (see `calibration_gaps`), each with its ``_interval``, [low, high] at 95% by the
        percentile bootstrap over distinct texts; ``per_class``: precision and recall with their intervals, f1 and
        rows, by name; ``confusion_matrix`` [true][predicted], or None where there are more than 256 classes.

        Precision without a prediction and recall without a row are 0, as in scikit-learn; macro F1 is the mean over
        classes that have a row or a prediction.
    """
    classes = len(names)
    predicted: Indices = log_probabilities.argmax(axis=1)
    matches, actual, guessed = _counts(labels, predicted, classes, None)
    scores = {"precision": _ratio(matches, guessed), "recall": _ratio(matches, actual)}
    f1 = _ratio(2 * matches, actual + guessed)
    losses = -log_probabilities[np.arange(len(labels)), labels]
    gaps = calibration_gaps(labels, log_probabilities)
    intervals = bootstrap(labels, predicted, groups, classes=classes, seed=seed, resamples=resamples)
    intervals |= bootstrap_means(losses, gaps, groups, seed=seed, resamples=resamples)
    matrix = None
    if classes <= MOST_CLASSES_OF_A_MATRIX:
        matrix = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes).tolist()
    overall = {
        "accuracy": float(np.mean(labels == predicted)),
        "macro_f1": _macro_f1(matches, actual, guessed),
        "weighted_f1": _weighted_f1(matches, actual, guessed),
        "log_loss": float(losses.mean()),
        "calibration_error": float(np.abs(gaps.sum(axis=0)).sum() / len(labels)),
    }
    return {
        "rows": len(labels),
        **overall,
        **{f"{name}_interval": intervals[name] for name in overall},
        "per_class": {
            name: {
                **{score: float(values[i]) for score, values in scores.items()},
                **{f"{score}_interval": intervals[score][i] for score in scores},
                "f1": float(f1[i]),
                "rows": int(actual[i]),
            }
            for i, name in enumerate(names)
        },
        "confusion_matrix": matrix,
    }


def calibration_gaps(labels: Indices, log_probabilities: Scores) -> Scores:
    """How far each row's confidence is from being right, in the column of its confidence's bin: (rows, 15) float64.

    The expected calibration error is the sum over bins of the absolute sums, over the rows: 15 bins of equal width
    (Guo et al., On Calibration of Modern Neural Networks, 2017).
    """
    confidence = np.exp(log_probabilities.max(axis=1))
    right = log_probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.zeros((len(labels), CALIBRATION_BINS))
    gaps[np.arange(len(labels)), bins] = right - confidence
    return gaps


def bootstrap_means(
    losses: Scores, gaps: Scores, groups: Indices, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, list[float]]:
    """95% percentile intervals of ``log_loss`` and ``calibration_error``, resampling whole groups with replacement.

    These differ from row to row, so every text is drawn; where there are more than 200,000, less often than 1,000
    times, but at least 200. The calibration error of a resample is a little larger than that of the rows: absolute
    values do not average out.
    """
    _, group = np.unique(groups, return_inverse=True)
    group = group.reshape(-1)
    texts = int(group.max()) + 1
    columns = np.column_stack([gaps, losses, np.ones(len(losses))])
    sums = np.zeros((texts, columns.shape[1]))
    np.add.at(sums, group, columns)
    rng = np.random.default_rng(seed)
    resamples = max(min(resamples, 200), min(resamples, _DRAWS // texts))
    drawn = np.stack(
        [
            np.bincount(rng.integers(texts, size=texts), minlength=texts).astype(np.float64) @ sums
            for _ in range(resamples)
        ]
    )
    errors = np.abs(drawn[:, :-2]).sum(axis=1) / drawn[:, -1]
    means = drawn[:, -2] / drawn[:, -1]
    return {
        name: np.percentile(values, [2.5, 97.5]).tolist()
        for name, values in (("log_loss", means), ("calibration_error", errors))
    }


def bootstrap(
    labels: Indices, predicted: Indices, groups: Indices, *, classes: int, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """95% percentile intervals, resampling whole groups with replacement.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; clusters as the unit: chapter 8. Texts of
    which the same is true (their rows' labels, and what was said of them) cannot be told apart by any score, so the
    number of each kind is drawn, from one multinomial: the cost does not grow with the rows.

    Returns:
        ``accuracy``, ``macro_f1`` and ``weighted_f1``: [low, high]; ``precision`` and ``recall``: (classes, 2), as
        lists.
    """
    cells, patterns, counts = _patterns(labels, predicted, groups)
    texts = counts.sum()
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(resamples):
        drawn = rng.multinomial(texts, counts / texts)  # (patterns,)
        weights = drawn[patterns] * cells[:, 2]
        matches, actual, guessed = _counts(cells[:, 0], cells[:, 1], classes, weights)
        f1 = [_macro_f1(matches, actual, guessed), _weighted_f1(matches, actual, guessed)]
        overall = [matches.sum() / actual.sum(), *f1]
        samples.append(np.concatenate([overall, _ratio(matches, guessed), _ratio(matches, actual)]))
    bounds = np.percentile(samples, [2.5, 97.5], axis=0).T.tolist()  # (3 + 2 x classes) of [low, high]
    overall_bounds = dict(zip(("accuracy", "macro_f1", "weighted_f1"), bounds[:3], strict=True))
    return {**overall_bounds, "precision": bounds[3 : 3 + classes], "recall": bounds[3 + classes :]}


def _patterns(labels: Indices, predicted: Indices, groups: Indices) -> tuple[Indices, Indices, Indices]:
    """Sort groups by what is true of their rows.

    Returns:
        Cells (cells, 3): label, prediction, and rows of a group that have both; patterns (cells,): which kind of
        group each cell is of; counts (patterns,): how many groups are of each kind.
    """
    found, rows = np.unique(np.stack([groups, labels, predicted], axis=1), axis=0, return_counts=True)
    # Most groups have one cell. One with several is taken for a kind of its own, named by its number, past all others.
    _, first, group, sizes = np.unique(found[:, 0], return_index=True, return_inverse=True, return_counts=True)
    alone = sizes[group.reshape(-1)] == 1
    kind = np.where(alone, -1, group.reshape(-1))
    cells, pattern = np.unique(np.stack([found[:, 1], found[:, 2], rows, kind], axis=1), axis=0, return_inverse=True)
    pattern = pattern.reshape(-1)
    key = np.where(cells[:, 3] < 0, -1 - np.arange(len(cells)), cells[:, 3])
    _, kinds = np.unique(key, return_inverse=True)
    kinds = kinds.reshape(-1)
    counts = np.bincount(kinds[pattern[first]], minlength=kinds.max() + 1)
    return cells[:, :3], kinds, counts


def _counts(
    labels: Indices, predicted: Indices, classes: int, weights: npt.NDArray[Any] | None
) -> tuple[Counts, Counts, Counts]:
    """Per class: rows that are it and were called it, rows that are it, rows that were called it."""
    hit = labels == predicted
    weights = np.ones(len(labels)) if weights is None else weights
    matches = np.bincount(labels[hit], weights[hit], classes)
    return matches, np.bincount(labels, weights, classes), np.bincount(predicted, weights, classes)


def _macro_f1(matches: npt.NDArray[Any], actual: npt.NDArray[Any], guessed: npt.NDArray[Any]) -> float:
    seen = actual + guessed > 0
    return float(_ratio(2 * matches, actual + guessed)[seen].mean())


def _weighted_f1(matches: npt.NDArray[Any], actual: npt.NDArray[Any], guessed: npt.NDArray[Any]) -> float:
    return float((_ratio(2 * matches, actual + guessed) * actual).sum() / actual.sum())


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    ratio: npt.NDArray[np.float64] = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return ratio
