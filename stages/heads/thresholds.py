"""From which probability on a label is predicted, chosen by rows that were not trained on: arrays in and out."""

from __future__ import annotations

import numpy as np

from ..types import Float64Array
from .multi_label_metrics import LabelMatrix

NEVER = 2.0
"""The threshold of a label that is never predicted."""


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
