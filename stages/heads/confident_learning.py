"""Which labels are likely errors, from out-of-fold probabilities: confident learning. Arrays in, arrays out.

The method is that of Northcutt, Jiang and Chuang (2021, arXiv 1911.00068), with the choices of cleanlab 2.9, whose
`find_label_issues` is the reference of the tests.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..settings import LabelScore, Pruning
from ..types import Float64Array, Indices, Mask
from .scratch import spans

_ROUNDING = 1e-6
"""Probabilities that differ by less count as equal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelErrors:
    """Which labels are likely errors."""

    thresholds: Float64Array
    """(classes,) the mean probability of each class over the rows that are labelled so; NaN for a class without rows.
    A row counts as confidently of a class if its probability reaches the threshold."""
    joint: Indices
    """(classes, classes) int64: estimated number of rows by their label (first axis) and their true class. A row of it
    sums to the number of rows that have the label."""
    found: Mask
    """(rows,) bool."""


def find_label_errors(
    probabilities: Float64Array, labels: Indices, *, prune: Pruning = Pruning.NOISE_RATE
) -> LabelErrors:
    """Find the rows whose label is likely an error.

    The confident joint counts the rows of each label that are confidently of each class (equation 1 of the paper), and
    is scaled to the numbers of rows that have each label (equation 3). Its entries say how many rows are pruned, and
    ``prune`` says which. A row whose label is its most probable class is never pruned. The only row of a class stays.

    Args:
        probabilities: (rows, classes) float64, of a head that was not trained on the row.
        labels: (rows,) int64, the given labels.
        prune: See `Pruning`.
    """
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    own = probabilities[np.arange(len(labels)), labels]
    means = np.bincount(labels, own, minlength=classes) / np.where(counts, counts, np.nan)
    thresholds = np.where(counts, np.maximum(means, 2 * _ROUNDING), np.inf)
    joint = _calibrated_joint(probabilities, labels, thresholds, counts)
    masks = []
    if prune is not Pruning.CLASS:
        masks.append(_prune_by_noise_rate(probabilities, labels, joint))
    if prune is not Pruning.NOISE_RATE:
        masks.append(_prune_by_class(own, labels, joint))
    likely = probabilities.max(axis=1) > own + _ROUNDING  # another class is more probable than the label
    return LabelErrors(thresholds=means, joint=joint, found=np.logical_and.reduce([likely, *masks]))


def label_scores(probabilities: Float64Array, labels: Indices, score: LabelScore) -> Float64Array:
    """Score labels, (rows,) float64 from 0 to 1; a low score is that of a likely error. See `LabelScore`."""
    rows = np.arange(len(labels))
    own: Float64Array = probabilities[rows, labels]
    if score is LabelScore.SELF_CONFIDENCE:
        return own
    best = np.empty(len(labels))
    for span in spans(probabilities):
        others = np.array(probabilities[span])
        others[np.arange(len(others)), labels[span]] = -1
        best[span] = others.max(axis=1)
    margins: Float64Array = (own - best + 1) / 2
    return margins


def _calibrated_joint(
    probabilities: Float64Array, labels: Indices, thresholds: Float64Array, counts: Indices
) -> Indices:
    """The confident joint, scaled so that each row sums to the number of rows that have its label."""
    classes = len(counts)
    guess, some = np.empty(len(labels), np.int64), np.empty(len(labels), bool)
    for span in spans(probabilities):
        confident = probabilities[span] >= thresholds - _ROUNDING
        several = confident.sum(axis=1) > 1
        guess[span] = np.where(several, probabilities[span].argmax(axis=1), confident.argmax(axis=1))
        some[span] = confident.any(axis=1)
    joint = np.bincount(labels[some] * classes + guess[some], minlength=classes**2).reshape(classes, classes)
    diagonal = np.arange(classes)
    joint[diagonal, diagonal] = np.maximum(joint[diagonal, diagonal], 1)
    # Halves are common among these numbers, so the order of the operations decides: it is cleanlab's.
    scaled = np.ascontiguousarray(joint.T) / joint.sum(axis=1) * counts
    return _round_rows((scaled / scaled.sum() * len(labels)).T)


def _round_rows(counts: Float64Array) -> Indices:
    """Round to whole numbers, so that each row keeps its sum: where it falls short, the entries with the largest
    remainders are rounded up."""
    rounded = np.round(counts)
    missing = np.round(counts.sum(axis=1) - rounded.sum(axis=1)).astype(np.int64)
    for row in np.flatnonzero(missing):
        order = np.argsort(counts[row] - rounded[row], kind="stable")
        rounded[row, order[-missing[row] :] if missing[row] > 0 else order[: -missing[row]]] += np.sign(missing[row])
    return rounded.astype(np.int64)


def _prune_by_noise_rate(probabilities: Float64Array, labels: Indices, joint: Indices) -> Mask:
    """For each label and each other class, as many rows as the joint says, those with the largest margin of the class
    over the label."""
    found = np.zeros(len(labels), bool)
    for label, row in enumerate(joint):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            continue
        removed = _keep_one(row, label)
        for other in np.flatnonzero(removed):
            margin = probabilities[rows, other] - probabilities[rows, label]
            found[rows[np.argsort(-margin, kind="stable")[: removed[other]]]] = True
    return found


def _prune_by_class(own: Float64Array, labels: Indices, joint: Indices) -> Mask:
    """For each label as many rows as the joint says are of other classes, those with the lowest probability of it."""
    found = np.zeros(len(labels), bool)
    for label, row in enumerate(joint):
        rows = np.flatnonzero(labels == label)
        if len(rows) > 1:
            kept = max(row[label], 1)
            found[rows[np.argsort(own[rows], kind="stable")[: len(rows) - kept]]] = True
    return found


def _keep_one(row: Indices, label: int) -> Indices:
    """How many rows of a label are pruned for each class. If none of the label's rows is left, each other class gives
    up its part of one."""
    others = np.count_nonzero(row) - 1
    short = max(1 - row[label], 0) / max(others, 1)
    removed: Indices = np.maximum(row - short, 0).astype(np.int64)
    removed[label] = 0
    return removed
