"""Metrics of rows that may have several labels, with confidence intervals: arrays in, plain numbers out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..types import Float64Array, Indices, Mask
from .calibration import reliability
from .intervals import average_precision_interval, share_intervals
from .metrics import RESAMPLES
from .text_bootstrap import hold, ratio, sum_intervals

LabelMatrix = npt.NDArray[np.uint8]
"""Which labels rows have, (rows, labels) uint8: 1 or 0."""
_MAX_NUMBERS = 4_000_000
_MAX_DRAWS = 200_000_000


def evaluate_labels(
    targets: LabelMatrix,
    logits: Float64Array,
    groups: Indices,
    *,
    names: tuple[str, ...],
    thresholds: Float64Array | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Score predictions of labels.

    Args:
        targets: (rows, labels) uint8.
        logits: (rows, labels) float64.
        groups: (rows,) int64, equal for copies of one text: intervals count texts and not rows.
        names: The labels' names.
        thresholds: (labels,) or (rows, labels) float64, the least probability of a label that is predicted; None for
            one half.
        seed: Seed of the resampling.
        resamples: Number of resamples for the intervals.

    Returns:
        ``rows``; ``micro_f1``, ``macro_f1``, ``samples_f1``, ``subset_accuracy`` (rows with each label right) and
        ``log_loss`` (in nats, the mean over rows and labels), each with its ``_interval``, [low, high] at 95%, which
        holds the score; ``average_precision``, the mean over the labels that have a row, with its ``_interval`` (both
        None if none has); ``reliability`` and ``calibration_error``, its expected gap, of each row's probability of
        each label (see `reliability`; the accuracy is the share of pairs in which the row has the label);
        ``per_class``, by name: precision and recall with their intervals, f1, average_precision (None without a row)
        and rows.

        As in scikit-learn, a ratio of nothing is 0: macro F1 is a mean over all labels, and the samples' F1 of a row
        without labels and predictions is 0.
    """
    said = predict_labels(logits, thresholds)
    true = targets.astype(bool)
    right, rows, labels = true & said, len(targets), len(names)
    counts = [array.sum(axis=0, dtype=np.float64) for array in (right, true, said)]
    f1 = f1_of_labels(true, said)
    precisions = [average_precision(true[:, label], logits[:, label]) for label in range(labels)]
    of_rows = [array.sum(axis=1, dtype=np.float64) for array in (right, true, said)]
    of_labels = label_losses(targets, logits)
    losses = of_labels.mean(axis=1)
    # What a row would lose if the label that costs least were wrong, or as much as the worst row.
    one_wrong = losses + (label_losses(1 - targets, logits) - of_labels).min(axis=1) / labels
    all_right = (true == said).all(axis=1)

    def terms(hits: Float64Array, predicted: Float64Array, losses: Float64Array) -> Float64Array:
        sizes = of_rows[1] + predicted
        return np.stack([np.ones(rows), hits, sizes, ratio(2 * hits, sizes), losses], axis=1)

    intervals = sum_intervals(
        terms(of_rows[0], of_rows[2], losses),
        _sum_scores,
        groups,
        bad=terms(np.zeros(rows), np.maximum(of_rows[1], 1), np.maximum(losses.max(), one_wrong)),
        good=terms(of_rows[1], of_rows[1], np.zeros(rows)),
        seed=seed,
        resamples=resamples,
    )
    scores = {
        name: float(score[0])
        for name, score in _sum_scores(terms(of_rows[0], of_rows[2], losses).sum(axis=0)[None]).items()
    }
    scores |= {"macro_f1": float(f1.mean()), "subset_accuracy": float(all_right.mean())}
    intervals["macro_f1"] = _macro_interval(true, said, groups, seed=seed, resamples=resamples)
    # One call for all shares: the rows once as one class, then predictions by their labels, then labels.
    said_row, said_label = np.nonzero(said)
    true_row, true_label = np.nonzero(true)
    shares = share_intervals(
        np.concatenate([all_right, right[said], right[true]]),
        np.concatenate([np.zeros(rows, np.int64), 1 + said_label, 1 + labels + true_label]),
        np.concatenate([groups, groups[said_row], groups[true_row]]),
        classes=1 + 2 * labels,
    )
    low, high = shares[0].tolist()
    intervals["subset_accuracy"] = [min(low, scores["subset_accuracy"]), max(high, scores["subset_accuracy"])]
    known = [value for value in precisions if value is not None]
    mean = float(np.mean(known)) if known else None
    bounds = average_precision_interval(logits, lambda label: true[:, label], groups, seed=seed, resamples=resamples)
    bins = reliability(true.reshape(-1), probabilities(logits).reshape(-1))
    gaps = [each["rows"] * abs(each["accuracy"] - each["confidence"]) for each in bins if each["rows"]]
    return {
        "rows": rows,
        **scores,
        "average_precision": mean,
        **{f"{name}_interval": interval for name, interval in intervals.items()},
        "average_precision_interval": None
        if mean is None or bounds is None
        else [min(float(bounds[0]), mean), max(float(bounds[1]), mean)],
        "calibration_error": sum(gaps) / true.size,
        "reliability": bins,
        "per_class": {
            name: {
                "precision": float(ratio(counts[0][[i]], counts[2][[i]])[0]),
                "recall": float(ratio(counts[0][[i]], counts[1][[i]])[0]),
                "precision_interval": shares[1 + i].tolist(),
                "recall_interval": shares[1 + labels + i].tolist(),
                "f1": float(f1[i]),
                "average_precision": precisions[i],
                "rows": int(counts[1][i]),
            }
            for i, name in enumerate(names)
        },
    }


def predict_labels(logits: npt.NDArray[np.floating[Any]], thresholds: Float64Array | None = None) -> Mask:
    """Which labels are predicted, (rows, labels) bool: those whose probability is at least the threshold, one half if
    none is given."""
    if thresholds is None:
        return logits >= 0
    return probabilities(logits) >= thresholds


def probabilities(logits: npt.NDArray[np.floating[Any]]) -> Float64Array:
    """The sigmoid of logits, float64."""
    return 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))


def label_losses(targets: LabelMatrix, logits: npt.NDArray[np.floating[Any]]) -> Float64Array:
    """Binary cross-entropy of each row and label, (rows, labels) float64, in nats."""
    losses: Float64Array = np.logaddexp(0, np.where(targets, -1.0, 1.0) * logits)
    return losses


def f1_of_labels(true: Mask, said: Mask) -> Float64Array:
    """The F1 score of each label, (labels,) float64; 0 of a label without a row and a prediction."""
    hits, rows, predicted = (array.sum(axis=0, dtype=np.float64) for array in (true & said, true, said))
    return ratio(2 * hits, rows + predicted)


def average_precision(true: Mask, scores: npt.NDArray[np.floating[Any]]) -> float | None:
    """The mean of the precisions at the ranks of the rows with a label, as in scikit-learn: rows with equal scores
    share the rank of the last of them. None without such a row. Both arguments are (rows,)."""
    if not true.any():
        return None
    _, place = np.unique(-scores, return_inverse=True)
    hits = np.bincount(place, true)
    return float((hits * np.cumsum(hits) / np.cumsum(np.bincount(place))).sum() / hits.sum())


def _sum_scores(sums: Float64Array) -> dict[str, Float64Array]:
    rows, hits, sizes, row_f1, losses = sums.T
    return {"micro_f1": ratio(2 * hits, sizes), "samples_f1": row_f1 / rows, "log_loss": losses / rows}


def _macro_interval(true: Mask, said: Mask, groups: Indices, *, seed: int, resamples: int) -> list[float]:
    """The interval of macro F1: as `sum_intervals`, with sums of each label.

    The text that is added has the labels of one of the sample. On the bad side all are missed, and as many others are
    predicted.
    """
    labels = true.shape[1]
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    sizes = np.bincount(group)
    label, row = np.nonzero((true | said).T)  # in the order of the labels
    text, hit = group[row], (true & said)[row, label].astype(np.float64)
    both = true[row, label].astype(np.float64) + said[row, label]
    present, starts = np.unique(label, return_index=True)
    rng = np.random.default_rng(seed)
    numbers = max(len(row), len(sizes), labels)
    resamples = max(min(resamples, 200), min(resamples, _MAX_DRAWS // max(numbers, 1)))
    chunk = max(1, _MAX_NUMBERS // max(numbers, 1))
    resampled: list[list[Float64Array]] = [[], []]
    for start in range(0, resamples, chunk):
        n = min(chunk, resamples - start)
        weights = rng.standard_exponential((n, len(sizes)))
        hits, whole = np.zeros((n, labels)), np.zeros((n, labels))
        if len(row):
            of_entries = weights[:, text]
            hits[:, present] = np.add.reduceat(of_entries * hit, starts, axis=1)
            whole[:, present] = np.add.reduceat(of_entries * both, starts, axis=1)
        added = rng.choice(len(sizes), n, p=sizes / len(groups))
        weight = (rng.standard_exponential(n) * sizes[added])[:, None]
        own = true[first[added]].astype(np.float64)
        wrong = np.roll(own, int(rng.integers(1, max(labels, 2))), axis=1)
        wrong[np.arange(n), rng.integers(labels, size=n)] += own.sum(axis=1) == 0
        sides = ((0 * own, own + wrong, 0.0), (own, 2 * own, 1.0))  # a label of which there is nothing may be either
        for side, (more_hits, more, unknown) in zip(resampled, sides, strict=True):
            side.append(ratio(2 * (hits + weight * more_hits), whole + weight * more, unknown).mean(axis=1))
    return hold(float(f1_of_labels(true, said).mean()), *map(np.concatenate, resampled))
