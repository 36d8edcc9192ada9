"""Cumulative logits to their optimum, for classes that have an order: arrays in, arrays out.

The probability that a row's class is above j is the sigmoid of (features x weight + bias j): one weight, and a bias for
each class but the last, in descending order (the proportional odds of McCullagh, Regression Models for Ordinal Data,
1980). A bias is a cut point with its sign turned. The objective is the sum over the rows of class weight x -log of the
probability of the row's class, plus l2 / 2 x the sum of squared weights; biases are not penalised.

With a = bias j - 1 and b = bias j, the probability of class j is sigmoid(x + a) - sigmoid(x + b), which equals
sigmoid(x + a) x sigmoid(-x - b) x (1 - exp(b - a)). So the objective is that of binary problems that share a weight,
where a row counts at the two biases next to its class; and a term of the biases alone, which keeps their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..threads import WorkerThreads
from ..types import Float64Array, Indices
from .binary import TOLERANCE, BinaryProblems
from .logistic import ConvergenceReport
from .spectrum import Rows, find_spectrum


class OrdinalSolver:
    """Solves for one training set and any number of penalties, one after the other. Each starts at the last optimum."""

    def __init__(
        self,
        rows: Rows,
        targets: Indices,
        *,
        class_weights: Float64Array,
        fold: Indices | None = None,
        folds: int = 1,
        threads: WorkerThreads,
    ) -> None:
        """Prepare to solve.

        Args:
            rows: The features of the rows, centered.
            targets: (rows,) int64, numbers of classes in their order.
            class_weights: (classes,) float64, the weight of a row of each class.
            fold: (rows,) int64: solves once for each fold from 1 to ``folds``, for the rows that are not in it. None:
                once, for all rows.
            threads: Threads to compute in.
        """
        classes = len(class_weights)
        number = np.full(len(rows), -1) if fold is None else fold - 1
        counts = np.stack([np.bincount(targets[number != held], minlength=classes) for held in range(folds)])

        def terms(problems: Indices, span: slice) -> tuple[torch.Tensor, torch.Tensor]:
            label, bias = targets[span], np.arange(classes - 1)[:, None]
            weight = ((label == bias) | (label == bias + 1)) * class_weights[label]  # (biases, rows)
            trained = number[span] != problems[:, None]  # (problems, rows)
            above = torch.from_numpy((label > bias).astype(np.float64))
            return above[None], torch.from_numpy(weight * trained[:, None])

        spectrum = find_spectrum(rows, np.ones(len(rows)), threads)
        self._problems = BinaryProblems(rows, terms, counts * class_weights, spectrum=spectrum, threads=threads)

    def solve(
        self, l2: float, *, tolerance: float = TOLERANCE, on_iteration: Callable[[int], None] = lambda iteration: None
    ) -> tuple[Float64Array, Float64Array, ConvergenceReport]:
        """Minimise the objective for one penalty.

        Returns:
            Weights (folds, 1, width) and biases (folds, classes - 1), where the number of folds is 1 without ``fold``,
            and how near to the optimum they are.
        """
        weights, biases, report = self._problems.solve(l2, tolerance=tolerance, on_iteration=on_iteration)
        return weights[:, None], biases, report


def class_log_probabilities(logits: npt.NDArray[np.floating[Any]]) -> Float64Array:
    """Logarithms of the probabilities of classes (rows, classes) float64, from the logits of being above each but the
    last. Logits that rounding has made equal count as 1e-7 apart."""
    edge = np.full((len(logits), 1), np.inf)
    bounds = np.concatenate([edge, logits.astype(np.float64), -edge], axis=1)
    above, beyond = bounds[:, :-1], bounds[:, 1:]
    gaps = np.maximum(above - beyond, 1e-7)
    result: Float64Array = np.log(-np.expm1(-gaps)) - np.logaddexp(0, -above) - np.logaddexp(0, beyond)
    return result
