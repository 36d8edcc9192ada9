"""How far new rows are from those of training: how well a classifier tells one from the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..threads import WorkerThreads
from ..types import Float64Array, Indices
from .audit import out_of_fold
from .dataset import Dataset

_PENALTIES = (100.0, 10.0, 1.0, 0.1, 0.01)
"""L2 penalties to choose from, each times the number of columns, which are standardized."""
_NORMAL_95 = 1.959964
_LEAST = 1e-300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """The area under the ROC curve with which new rows are told from those of training."""

    auc: float
    """The probability that a new row has the higher score of the two: 0.5 where they cannot be told apart."""
    interval: tuple[float, float]
    """At 95%; it holds ``auc``."""
    l2: float
    """The penalty of the classifier."""


def measure_drift(
    dataset: Dataset, fold: Indices, *, threads: WorkerThreads, on_step: Callable[[], None] = lambda: None
) -> Drift:
    """Tell new rows from those of training by logistic regression, trained on a part of both and tested on the others.

    The rows that are tested have no say in the classifier, so the interval holds 0.5 as often as it says where nothing
    differs. Over folds it would not: of any two folds, each has a say in the classifier of the other.

    Args:
        dataset: The rows, without copies of a text within a side: the targets are 1 of new rows, and 0 of others.
        fold: (rows,) int64: the fold of a row to train on, from 1, by which the penalty is chosen; 0 of rows to test.
        threads: Worker threads.
        on_step: Called now and then.
    """
    options: dict[str, Any] = {"classes": 2, "memory": None, "threads": threads, "on_step": on_step}
    own, tested = np.flatnonzero(fold > 0), fold == 0
    penalties = [dataset.width * share for share in _PENALTIES]
    train = dataclasses.replace(dataset, index=dataset.index[own])
    l2 = out_of_fold(train, fold[own], penalties=penalties, **options).l2
    judged = out_of_fold(dataset, tested.astype(np.int64), penalties=[l2], **options)
    chance = judged.probabilities[tested]
    auc, interval = auc_with_interval(np.log(np.maximum(chance, _LEAST)) @ [-1, 1], dataset.targets[tested])
    return Drift(auc=auc, interval=interval, l2=l2)


def auc_with_interval(scores: Float64Array, labels: Indices) -> tuple[float, tuple[float, float]]:
    """Return the area under the ROC curve, and its 95% interval.

    The variance is that of DeLong, DeLong and Clarke-Pearson (1988, Biometrics 44). Where all rows are told apart
    without an error, it is 0; so the interval is never narrower than the rule of three says for the smaller side.

    Args:
        scores: (rows,) float64, higher for rows of class 1.
        labels: (rows,) int64, 0 or 1; there are at least two rows of each.
    """
    new, old = (np.sort(scores[labels == side]) for side in (1, 0))
    below_new = (np.searchsorted(old, new) + np.searchsorted(old, new, side="right")) / (2 * len(old))
    above_old = 1 - (np.searchsorted(new, old) + np.searchsorted(new, old, side="right")) / (2 * len(new))
    auc = float(below_new.mean())
    variance = sum(float(part.var(ddof=1)) / len(part) for part in (below_new, above_old))
    half = max(_NORMAL_95 * math.sqrt(variance), 3 / min(len(new), len(old)))
    return auc, (max(auc - half, 0.0), min(auc + half, 1.0))
