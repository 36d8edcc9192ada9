"""How good predictions are, and how sure that is. Plain arrays only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Counts = npt.NDArray[Any]

RESAMPLES = 1000
MOST_CLASSES_OF_A_MATRIX = 256
"""A confusion matrix of more classes is not kept: nobody reads it, and its size grows with the square."""


def evaluate(
    labels: Indices, predicted: Indices, groups: Indices, *, names: tuple[str, ...], seed: int = 0
) -> dict[str, Any]:
    """Score predictions.

    Args:
        labels: (rows,) int64, the true classes.
        predicted: (rows,) int64.
        groups: (rows,) int64, equal for copies of one text: intervals resample texts, not rows, because copies
            say the same thing twice.
        names: The classes' names.
        seed: Of the resampling.

    Returns:
        ``rows``; ``accuracy`` and ``macro_f1``, with ``accuracy_interval`` and ``macro_f1_interval``, each [low, high]
        at 95% by the percentile bootstrap over distinct texts; ``per_class``: precision and recall with their
        intervals, f1 and rows, by name;
        ``confusion_matrix`` [true][predicted], or None where there are more than 256 classes.

        Precision without a prediction and recall without a row are 0, as in scikit-learn; macro F1 is the mean over
        classes that have a row or a prediction.
    """
    classes = len(names)
    matches, actual, guessed = _counts(labels, predicted, classes, None)
    scores = {"precision": _ratio(matches, guessed), "recall": _ratio(matches, actual)}
    f1 = _ratio(2 * matches, actual + guessed)
    intervals = bootstrap(labels, predicted, groups, classes=classes, seed=seed)
    matrix = None
    if classes <= MOST_CLASSES_OF_A_MATRIX:
        matrix = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes).tolist()
    return {
        "rows": len(labels),
        "accuracy": float(np.mean(labels == predicted)),
        "accuracy_interval": intervals["accuracy"],
        "macro_f1": _macro_f1(matches, actual, guessed),
        "macro_f1_interval": intervals["macro_f1"],
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


def bootstrap(
    labels: Indices, predicted: Indices, groups: Indices, *, classes: int, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """95% percentile intervals, resampling whole groups with replacement.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; clusters as the unit: chapter 8. Texts of
    which the same is true (their rows' labels, and what was said of them) cannot be told apart by any score, so the
    number of each kind is drawn, from one multinomial: the cost does not grow with the rows.

    Returns:
        ``accuracy`` and ``macro_f1``: [low, high]; ``precision`` and ``recall``: (classes, 2), as lists.
    """
    cells, patterns, counts = _patterns(labels, predicted, groups)
    texts = counts.sum()
    rng = np.random.default_rng(seed)
    samples = []
    for drawn in rng.multinomial(texts, counts / texts, size=resamples):  # (patterns,)
        weights = drawn[patterns] * cells[:, 2]
        matches, actual, guessed = _counts(cells[:, 0], cells[:, 1], classes, weights)
        overall = [matches.sum() / actual.sum(), _macro_f1(matches, actual, guessed)]
        samples.append(np.concatenate([overall, _ratio(matches, guessed), _ratio(matches, actual)]))
    bounds = np.percentile(samples, [2.5, 97.5], axis=0).T.tolist()  # (2 + 2 x classes) of [low, high]
    precision, recall = bounds[2 : 2 + classes], bounds[2 + classes :]
    return {"accuracy": bounds[0], "macro_f1": bounds[1], "precision": precision, "recall": recall}


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


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    ratio: npt.NDArray[np.float64] = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return ratio
