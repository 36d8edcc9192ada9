"""One-vs-rest logistic regressions to their optima, for rows that may have several labels: arrays in, arrays out.

Each label's objective is the sum over the rows of class weight x binary cross-entropy, plus l2 / 2 x the sum of squared
weights; the bias is not penalised. That is scikit-learn's ``OneVsRestClassifier(LogisticRegression(C=1 / l2))``. All
labels, and where asked all folds, share each product with the features (see `binary`).

A label that no row has, or that every row has, gets no weights and a constant bias: see `BinaryProblems`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from ..settings import ClassWeight
from ..threads import WorkerThreads
from ..types import Float64Array, Indices
from .binary import TOLERANCE, BinaryProblems
from .logistic import ConvergenceReport
from .spectrum import Rows, find_spectrum

LabelMatrix = npt.NDArray[np.uint8]
"""Which labels rows have, (rows, labels) uint8: 1 or 0."""
_MEMORY = 1 << 30


class OneVsRestSolver:
    """Solves for one training set and any number of penalties, one after the other. Each starts at the last optima.

    Attributes:
        constant: Labels that no row has, or that every row has.
    """

    def __init__(
        self,
        rows: Rows,
        targets: LabelMatrix,
        *,
        class_weight: ClassWeight = ClassWeight.NONE,
        fold: Indices | None = None,
        folds: int = 1,
        memory: int | None = None,
        threads: WorkerThreads,
    ) -> None:
        """Prepare to solve.

        Args:
            rows: The features of the rows, centered.
            targets: (rows, labels) uint8.
            class_weight: balanced: for each label, rows with it count as much as rows without it.
            fold: (rows,) int64: solves once for each fold from 1 to ``folds``, for the rows that are not in it. None:
                once, for all rows.
            memory: Labels are divided into parts, so that each part takes no more bytes than about half of this.
            threads: Threads to compute in.
        """
        self._labels, self._folds = targets.shape[1], folds
        positives = targets.sum(axis=0, dtype=np.int64)
        self.constant: Indices = np.flatnonzero((positives == 0) | (positives == len(rows)))
        spectrum = find_spectrum(rows, np.ones(len(rows)), threads)
        number = np.full(len(rows), -1) if fold is None else fold - 1
        size = max(1, (memory or _MEMORY) // 2 // (4 * len(rows) * self._folds))

        def part(labels: slice) -> BinaryProblems:
            columns = np.ascontiguousarray(targets[:, labels].T)  # (labels, rows)
            held = np.zeros((self._folds, len(columns), 2))  # rows of each fold without and with each label
            for row in range(folds):
                held[row, :, 1] = columns[:, number == row].sum(axis=1, dtype=np.int64)
                held[row, :, 0] = (number == row).sum() - held[row, :, 1]
            with_label = columns.sum(axis=1, dtype=np.int64)
            counts = (np.stack([len(rows) - with_label, with_label], axis=1) - held).reshape(-1, 2)
            weights = np.ones_like(counts)
            if class_weight is ClassWeight.BALANCED:
                weights = counts.sum(axis=1, keepdims=True) / (2 * np.maximum(counts, 1))

            def terms(problems: Indices, span: slice) -> tuple[torch.Tensor, torch.Tensor]:
                held_out, which = np.divmod(problems, len(columns))
                above = columns[which][:, span]
                weight = np.where(above, weights[problems, 1:], weights[problems, :1])
                weight = weight * (number[span] != held_out[:, None])
                return torch.from_numpy(above[:, None].astype(np.float64)), torch.from_numpy(weight[:, None])

            return BinaryProblems(rows, terms, counts * weights, spectrum=spectrum, threads=threads)

        self._parts = [part(slice(start, start + size)) for start in range(0, self._labels, size)]

    def solve(
        self, l2: float, *, tolerance: float = TOLERANCE, on_iteration: Callable[[int], None] = lambda iteration: None
    ) -> tuple[Float64Array, Float64Array, ConvergenceReport]:
        """Minimise the objectives for one penalty.

        Returns:
            Weights (folds, labels, width) and biases (folds, labels), where the number of folds is 1 without ``fold``,
            and how near to the optima they are.
        """
        solved = [part.solve(l2, tolerance=tolerance, on_iteration=on_iteration) for part in self._parts]
        weights, biases = (
            np.concatenate([array.reshape(self._folds, -1, array.shape[1]) for array in arrays], axis=1)
            for arrays in list(zip(*solved, strict=True))[:2]
        )
        return weights, biases[:, :, 0], _together([report for _, _, report in solved])


def _together(reports: list[ConvergenceReport]) -> ConvergenceReport:
    """Add up reports about parts of a problem."""
    last = max(reports, key=lambda report: not report.converged)
    return dataclasses.replace(
        last,
        objective=sum(report.objective for report in reports),
        penalty=sum(report.penalty for report in reports),
        gradient_norm=float(np.linalg.norm([report.gradient_norm for report in reports])),
        gap=sum(report.gap for report in reports),
        iterations=max(report.iterations for report in reports),
        passes=sum(report.passes for report in reports),
        seconds=sum(report.seconds for report in reports),
    )


def held_out_logits(rows: Rows, fold: Indices, weights: Float64Array, biases: Float64Array) -> npt.NDArray[np.float32]:
    """Each row's logits by the weights of its own fold, which were found without it: (rows, labels) float32; of rows in
    no fold they are 0.

    Args:
        rows: The features of the rows.
        fold: (rows,) int64, from 1; 0 for rows in no fold.
        weights: (folds, labels, width) float64; a single weight may serve all biases.
        biases: (folds, labels) float64.
    """
    logits = np.zeros((len(rows), biases.shape[1]), np.float32)
    for start in range(0, len(rows), 2048):
        features, number = rows.take(slice(start, start + 2048)), fold[start : start + 2048] - 1
        for held in np.unique(number[number >= 0]):
            some = np.flatnonzero(number == held)
            product = torch.mm(torch.from_numpy(features[some]), torch.from_numpy(weights[held].astype(np.float32)).T)
            logits[start + some] = product.numpy() + biases[held].astype(np.float32)
    return logits
