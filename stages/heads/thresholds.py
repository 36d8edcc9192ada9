"""From which probability on a label is predicted, chosen by rows that were not trained on: arrays in and out."""

from __future__ import annotations

import numpy as np

from ..types import Float64Array, Indices
from .multi_label_metrics import LabelMatrix

NEVER = 2.0
"""The threshold of a label that is never predicted."""
_MOST_FOLDS = 10


def find_thresholds(
    targets: LabelMatrix, probabilities: Float64Array, *, least_precision: float | None = None
) -> Float64Array:
    """Choose each label's threshold, (labels,) float64: a label is predicted if its probability is not below it.

    It is the one with the highest F1 on these rows. With ``least_precision`` it is the one that finds the most rows,
    among those whose precision on these rows is not below that; if there is none, the label is never predicted. Of
    equally good ones the highest is taken, and it lies in the middle between two probabilities of rows. The threshold
    of a label without a row is one half, or `NEVER` with ``least_precision``.

    Args:
        targets: (rows, labels) uint8, 1 if the row has the label.
        probabilities: (rows, labels) float64, of heads that were not trained on the row.
        least_precision: Between 0 and 1; None to look for the highest F1.
    """
    found = np.full(targets.shape[1], 0.5 if least_precision is None else NEVER)
    for label in np.flatnonzero(targets.any(axis=0)):
        ranked, place = np.unique(-probabilities[:, label], return_inverse=True)
        ranked = -ranked  # the distinct probabilities, from the highest
        hits = np.cumsum(np.bincount(place, targets[:, label]))
        said = np.cumsum(np.bincount(place))
        if least_precision is None:
            best = int((2 * hits / (said + hits[-1])).argmax())
        else:
            enough = np.flatnonzero(hits >= least_precision * said - 1e-9)
            if not len(enough):
                continue
            best = int(enough[hits[enough] == hits[enough].max()][0])
        below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
        middle = (ranked[best] + below) / 2
        found[label] = middle if middle > below else ranked[best]
    return found


def thresholds_by_fold(
    targets: LabelMatrix, probabilities: Float64Array, fold: Indices, *, least_precision: float | None = None
) -> Float64Array:
    """Each row's thresholds by `find_thresholds` of the rows in other folds, (rows, labels) float64: a row can be
    scored by thresholds that it had no part in. ``fold`` is (rows,) int64; at most ten folds are told apart."""
    found, numbers = np.empty(probabilities.shape), np.unique(fold, return_inverse=True)[1] % _MOST_FOLDS
    for number in np.unique(numbers):
        ours, others = numbers == number, numbers != number
        chosen = others if others.any() else ours
        found[ours] = find_thresholds(targets[chosen], probabilities[chosen], least_precision=least_precision)
    return found
