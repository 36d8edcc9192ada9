"""From which probability on a label is predicted, chosen by rows that were not trained on: arrays in and out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..settings import Decision
from ..types import Float64Array, Mask
from .multi_label_metrics import LabelMatrix

NEVER = 2.0
"""The threshold of a label that is never predicted."""


def find_thresholds(
    targets: LabelMatrix,
    probabilities: Float64Array,
    weights: Float64Array,
    *,
    metric: Decision = Decision.MACRO_F1,
    floors: Mapping[int, float] | None = None,
) -> Float64Array:
    """Choose each label's threshold, (labels,) float64: see `best_threshold`.

    Args:
        targets: (rows, labels) uint8, 1 if the row has the label.
        probabilities: (rows, labels) float64, of heads that were not trained on the row.
        weights: (rows, labels) float64, how much a row counts.
        metric: What to choose by; macro F1 is the highest where each label's F1 is.
        floors: The least precision of some labels, by their numbers: it chooses for them instead.
    """
    floors = floors or {}
    return np.array(
        [
            best_threshold(
                probabilities[:, label],
                targets[:, label] == 1,
                weights[:, label],
                metric=metric,
                floor=floors.get(label),
                both=False,
            )
            for label in range(targets.shape[1])
        ]
    )


def best_threshold(
    probability: Float64Array,
    is_label: Mask,
    weight: Float64Array,
    *,
    metric: Decision,
    floor: float | None,
    both: bool,
) -> float:
    """Find the probability from which a label is predicted, in the middle between two of these rows.

    By accuracy or F1 it is the best one, and of equally good ones the nearest to one half. With a floor it is the one
    that finds the most rows of the label among those whose precision is not below the floor.

    Args:
        probability: (rows,) float64, of the label.
        is_label: (rows,) bool, whether the row has the label.
        weight: (rows,) float64, how much the row counts.
        metric: What to choose by without a floor.
        floor: The least precision, or None.
        both: Whether rows without the label are a class too, whose F1 counts as much.

    Returns:
        The threshold; `NEVER` if none has that precision; one half if no row has the label and there is no floor.
    """
    if not is_label.any():
        return 0.5 if floor is None else NEVER
    ranked, place = np.unique(-probability, return_inverse=True)
    ranked = -ranked  # from the highest
    hits, said = (np.cumsum(np.bincount(place, values)) for values in (weight * is_label, weight))
    total, relevant = said[-1], hits[-1]
    below = np.append(ranked[1:], 0.0)
    middles = (ranked + below) / 2
    middles = np.clip(np.where(middles > below, middles, ranked), 1e-12, 1 - 1e-12)
    if floor is not None:
        enough = np.flatnonzero((hits >= floor * said - 1e-9 * total) & (hits > 0))
        return float(middles[enough[hits[enough].argmax()]]) if len(enough) else NEVER
    # Also that no row is predicted to have the label.
    hits, said, middles = (
        np.append(0.0, hits),
        np.append(0.0, said),
        np.append(min((ranked[0] + 1) / 2, 1 - 1e-12), middles),
    )
    right = hits + total - said - relevant + hits
    value = right
    if metric is Decision.MACRO_F1:
        f1 = [(2 * hits, said + relevant), *[(2 * (right - hits), 2 * total - said - relevant)] * both]
        value = sum(np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0) for top, bottom in f1)
    best = np.flatnonzero(value >= value.max() * (1 - 1e-12))
    return float(middles[best[np.abs(middles[best] - 0.5).argmin()]])
