"""What cached features say of their labels: out-of-fold probabilities, outliers, and what to label next.

Arrays in, arrays out. Label errors are found in `confident_learning`, near-duplicates in `near_duplicates`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..settings import ClassWeight, Scaling
from ..threads import WorkerThreads
from ..types import Features, Float64Array, Indices, Mask
from .dataset import Dataset
from .head import Parameters
from .logistic_path import LogisticPath
from .scratch import map_rows
from .targets import Scores, log_softmax

CHOOSING_ROWS = 50_000
"""A penalty is chosen by no more rows: with as many, the best one is known well enough, and each one costs a minute of
350,000 x 768."""
CANDIDATES = 10
"""Uncertain rows for each row that is chosen to be labelled, at most: the factor beta of Zhdanov (2019)."""
_KMEANS_STEPS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Probabilities of heads that were not trained on the row."""

    probabilities: Float64Array  # (rows, classes)
    judged: Mask
    """(rows,) False for rows in no fold, and where the head saw no other row of the label."""
    l2: float
    losses: dict[float, float]
    """Mean cross-entropy of the judged rows among those that chose the penalty, for each one that was tried."""
    chosen_by: int  # number of rows that chose the penalty
    log_loss: float  # mean cross-entropy of all judged rows
    accuracy: float  # of the judged rows
    converged: bool  # every fold's head is near enough to its optimum


def out_of_fold(
    dataset: Dataset,
    fold: Indices,
    *,
    classes: int,
    penalties: Sequence[float],
    memory: int | None,
    threads: WorkerThreads,
    on_step: Callable[[], None] = lambda: None,
) -> OutOfFold:
    """Judge the rows of each fold by logistic regression on standardized columns, trained on the other folds.

    Of more than `CHOOSING_ROWS` rows, so many choose the penalty, of each class and fold their share; then all rows are
    judged with it alone.

    Args:
        dataset: The rows.
        fold: (rows,) int64 from 1, as `assign_folds` gives them; rows of fold 0 are always trained on.
        classes: Number of classes.
        penalties: L2 penalties, tried from the largest on, until two in a row are worse than the best. The one with the
            lowest mean cross-entropy of the judged rows is taken; of equal ones the largest.
        memory: Bound for copies of the features; None for no bound.
        threads: Worker threads.
        on_step: Called now and then.
    """
    labels, folds = dataset.targets, int(fold.max())
    if len(penalties) > 1 and len(dataset) > CHOOSING_ROWS:
        rows = np.lexsort((np.random.default_rng(0).random(len(fold)), fold, labels))
        rows = np.sort(rows[np.linspace(0, len(rows) - 1, CHOOSING_ROWS).astype(np.int64)])
        options: dict[str, Any] = {"classes": classes, "memory": memory, "threads": threads, "on_step": on_step}
        chosen = out_of_fold(
            dataclasses.replace(dataset, index=dataset.index[rows]), fold[rows], penalties=penalties, **options
        )
        whole = out_of_fold(dataset, fold, penalties=[chosen.l2], **options)
        return dataclasses.replace(whole, losses=chosen.losses, chosen_by=len(rows))
    outside = np.bincount(labels, minlength=classes) - np.stack(
        [np.bincount(labels[fold == number], minlength=classes) for number in range(folds + 1)]
    )  # (folds + 1, classes) rows of each class outside each fold
    judged = (fold > 0) & (outside[fold, labels] > 0)
    path = LogisticPath(
        dataset,
        scaling=Scaling.STANDARDIZED,
        fold=fold,
        folds=folds,
        classes=classes,
        class_weight=ClassWeight.NONE,
        memory=memory,
        threads=threads,
    )
    losses: dict[float, float] = {}
    for point in path.solve(penalties, on_step):
        loss = -float(log_softmax(point.logits)[judged, labels[judged]].mean())
        if not losses or loss < min(losses.values()):
            best = point
        losses[point.l2] = loss
        if min(list(losses.values())[-2:]) > losses[best.l2]:
            break
    probabilities: Float64Array = map_rows(lambda rows: np.exp(log_softmax(rows)), best.logits)
    right = (probabilities.argmax(axis=1) == labels)[judged]
    return OutOfFold(
        probabilities=probabilities,
        judged=judged,
        l2=best.l2,
        losses=losses,
        chosen_by=len(dataset),
        log_loss=losses[best.l2],
        accuracy=float(right.mean()),
        converged=best.converged,
    )


def _logits(dataset: Dataset, parameters: Parameters) -> Scores:
    """(rows, classes) float32 of a linear head."""
    logits, start = np.empty((len(dataset), len(parameters["bias"])), np.float32), 0
    for chunk in dataset.chunks():
        logits[start : start + len(chunk)] = chunk @ parameters["weight"].T + parameters["bias"]
        start += len(chunk)
    return logits


def class_distances(dataset: Dataset, classes: int) -> Float64Array:
    """Return each row's Mahalanobis distance from the nearest class mean: (rows,) float64.

    The classes share a covariance, that of all rows about the mean of their class (Lee et al. 2018, arXiv 1807.03888).
    It is shrunk towards a multiple of the identity as much as Chen et al. (2010, arXiv 0907.4698) estimate, so that it
    is not singular. Features are read three times, in parts.
    """
    labels, width = dataset.targets, dataset.width
    counts = np.bincount(labels, minlength=classes)
    sums, start = torch.zeros((classes, width), dtype=torch.float64), 0
    for chunk in dataset.chunks():
        of_rows = torch.from_numpy(labels[start : start + len(chunk)])
        sums.index_add_(0, of_rows, torch.from_numpy(chunk).to(torch.float64))
        start += len(chunk)
    means = sums.numpy() / np.maximum(counts, 1)[:, None]
    scatter, start = np.zeros((width, width)), 0
    for chunk in dataset.chunks():
        within = torch.from_numpy(chunk - means[labels[start : start + len(chunk)]].astype(np.float32))
        scatter += (within.T @ within).numpy()
        start += len(chunk)
    covariance = scatter / len(dataset)
    shrinkage = _shrinkage(covariance, len(dataset))
    covariance = (1 - shrinkage) * covariance
    covariance[np.diag_indices(width)] += shrinkage * np.trace(scatter) / len(dataset) / width
    variances, axes = torch.linalg.eigh(torch.from_numpy(covariance))
    least = variances[-1] * 1e-9  # all rows of a class may be equal
    whiten = axes / variances.clamp(min=max(float(least), 1e-30)).sqrt()
    present = np.flatnonzero(counts)
    centres = torch.from_numpy(means[present] - means[present[0]]) @ whiten  # (classes, width); any origin would do
    whiten = whiten.to(torch.float32)
    distances, start = np.empty(len(dataset)), 0  # small arrays kept between large ones would break up the memory
    for chunk in dataset.chunks():
        rows = (torch.from_numpy(chunk - means[present[0]].astype(np.float32)) @ whiten).to(torch.float64)
        squares = _squares(rows, centres) + (rows**2).sum(1, keepdim=True)
        distances[start : start + len(chunk)] = squares.amin(1).clamp(min=0).sqrt().numpy()
        start += len(chunk)
    return distances


def _shrinkage(covariance: Float64Array, rows: int) -> float:
    """The share of the identity in a shrunk covariance: oracle approximating shrinkage."""
    width = len(covariance)
    squares, mean = float((covariance**2).mean()), float(np.trace(covariance)) / width
    spread = (rows + 1) * (squares - mean**2 / width)
    return 1.0 if spread <= 0 else min((squares + mean**2) / spread, 1.0)


def above_fence(distances: Float64Array, fence: float) -> Mask:
    """Which distances are more than ``fence`` interquartile ranges above the third quartile (Tukey 1977; 3 is his outer
    fence): (rows,) bool."""
    first, third = np.quantile(distances, [0.25, 0.75])
    above: Mask = distances > third + fence * (third - first)
    return above


@dataclasses.dataclass(frozen=True)
class Choice:
    """Rows to label next, the most uncertain first."""

    rows: Indices  # (chosen,) positions
    predictions: Indices  # (rows of the pool,) the most probable class
    probabilities: Float64Array  # (rows of the pool,) of that class
    margins: Float64Array  # (rows of the pool,) that probability less the second largest


def choose_next(pool: Dataset, parameters: Parameters, count: int) -> Choice:
    """Choose rows to label: uncertain ones that differ from each other.

    The candidates are the `CANDIDATES` x ``count`` rows of the smallest margin between the two most probable classes.
    They are divided by k-means into ``count`` clusters, a row weighing as much as it is uncertain (1 - margin), and the
    row nearest to each centre is chosen (Zhdanov 2019, arXiv 1901.05954). The first centres are far from each other:
    the most uncertain row, and then each time the candidate farthest from all centres. So nothing is random.

    Args:
        pool: The rows to choose from, each text once; the labels are not read.
        parameters: ``weight`` and ``bias`` of a linear head.
        count: Number of rows to choose; if the pool has no more rows, all are chosen.
    """
    probabilities = np.exp(log_softmax(_logits(pool, parameters)))
    predictions = probabilities.argmax(axis=1)
    second, largest = np.partition(probabilities, (-2, -1), axis=1)[:, -2:].T
    margins = largest - second
    candidates = np.argsort(margins, kind="stable")[: CANDIDATES * count]
    if count < len(candidates):
        candidates = candidates[_nearest_to_centres(pool.take(candidates), 1 - margins[candidates], count)]
    return Choice(candidates, predictions, largest, margins)


def _nearest_to_centres(rows: Features, weights: Float64Array, count: int) -> Indices:
    """Weighted k-means; return a row for each centre, each another one: (count,) int64, ascending."""
    points = torch.from_numpy(rows - rows.mean(axis=0))
    norms = (points**2).sum(1)
    weight = torch.from_numpy(np.maximum(weights, 1e-6).astype(np.float32))
    first = [0]
    distance = torch.full((len(points),), torch.inf)
    for _ in range(count - 1):
        distance = torch.minimum(distance, norms - 2 * points @ points[first[-1]] + norms[first[-1]])
        distance[first[-1]] = -1
        first.append(int(distance.argmax()))
    centres = points[first]
    for _ in range(_KMEANS_STEPS):
        nearest = torch.cat([_squares(part, centres).argmin(1) for part in torch.split(points, 2048)])
        total = torch.zeros(count).index_add_(0, nearest, weight)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points * weight[:, None])
        centres = torch.where(total[:, None] > 0, sums / total.clamp(min=1e-30)[:, None], centres)
    taken = np.zeros(len(points), bool)
    for centre in centres:
        far = (norms - 2 * points @ centre).numpy()
        taken[np.where(taken, np.inf, far).argmin()] = True
    return np.flatnonzero(taken)


def _squares(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Squared distances (points, centres), less the points' own squares."""
    return (centres**2).sum(1) - 2 * points @ centres.T
