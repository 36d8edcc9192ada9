"""Ridge regression to its optimum, for many penalties from one eigendecomposition: arrays in, arrays out.

It minimises the sum over the rows of (target - prediction)^2, plus l2 times the sum of the squared weights, as
scikit-learn's ``Ridge`` does with ``alpha``. The bias is not penalised. Rows with one text count as one row with their
number as its weight, their mean as its target, and the features of the first of them: that has the same optimum.

In the eigenvectors of the features' covariance each penalty is one division. So is the prediction for a text by all
other texts: its residual is divided by 1 - h, where h is the text's leverage (Golub, Heath and Wahba, Generalized
Cross-Validation, 1979).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..threads import WorkerThreads
from ..types import Features, Float64Array, Indices
from .logistic import ConvergenceReport
from .spectrum import Rows, find_spectrum, sum_over_rows


class RidgeSolver:
    """Solves for one training set and any number of penalties, all of them above 0."""

    def __init__(self, rows: Rows, targets: Float64Array, groups: Indices, *, threads: WorkerThreads) -> None:
        """Prepare to solve.

        Args:
            rows: The features of the rows, which are read a few times.
            targets: (rows,) float64.
            groups: (rows,) int64, equal for copies of one text. There are at least two texts.
            threads: Threads to compute in.
        """
        _, first, text, copies = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
        order = np.argsort(first)  # so that the rows are read in their order
        self._text = np.argsort(order)[text]  # (rows,)
        self._rows, self._threads = _Selection(rows, first[order].astype(np.int64)), threads
        self._weights = copies[order].astype(np.float64)  # (texts,), as the targets, which are centered
        self._mean = float(targets.mean())
        self._targets: Float64Array = np.bincount(self._text, targets - self._mean) / self._weights
        self._squares = float(((targets - self._mean) ** 2).sum())
        self._spectrum = find_spectrum(self._rows, self._weights, threads)
        (self._moments,) = self._sum(self._rows, lambda span, z: [z.T @ (self._weights * self._targets)[span]])

    def solve(
        self, l2: float, *, on_iteration: Callable[[int], None] = lambda iteration: None
    ) -> tuple[Float64Array, Float64Array, ConvergenceReport]:
        """Find the optimum for one penalty.

        Returns:
            The weights (1, 1, width) and the bias (1, 1): the shapes of other solvers, whose folds and outputs are
            several. And a report; no step is taken.
        """
        started, variances = time.perf_counter(), self._spectrum.variances
        coefficients = self._moments / (variances + l2)
        weight = self._spectrum.directions @ coefficients
        penalty = l2 * float((coefficients**2).sum())
        report = ConvergenceReport(
            l2=l2,
            objective=self._squares - float((self._moments * coefficients).sum()),
            penalty=penalty,
            gradient_norm=2 * float(np.linalg.norm((variances + l2) * coefficients - self._moments)),
            gap=0.0,
            iterations=0,
            passes=0,
            converged=True,
            reason="the optimum is a formula",
            seconds=time.perf_counter() - started,
        )
        return weight[None, None], np.array([[self._mean - float(weight @ self._spectrum.mean)]]), report

    def leave_one_out(self, penalties: Sequence[float]) -> Float64Array:
        """For each penalty, each row's prediction by the optimum of all rows with other texts: (penalties, rows)."""
        variances, share = self._spectrum.variances[:, None], self._weights / self._weights.sum()
        shrunk = 1 / (variances + np.array(penalties))  # (rank, penalties)
        predictions = np.empty((len(penalties), len(share)))

        def work(span: slice, z: Float64Array) -> list[Float64Array]:
            leverage = self._weights[span, None] * z**2 / variances.T  # (texts, rank), without a penalty
            # 1 - leverage, as a sum of terms that are not negative, so that no digits cancel
            rest = np.maximum(1 - share[span] - leverage.sum(axis=1), 0)[:, None]
            rest = rest + leverage @ (shrunk * np.array(penalties))
            targets = self._targets[span, None]
            residuals = targets - z @ (self._moments[:, None] * shrunk)
            predictions[:, span] = (targets - residuals / rest).T + self._mean
            return []

        self._sum(self._rows, work)
        return predictions[:, self._text]

    def leave_folds_out(self, penalties: Sequence[float], fold: Indices) -> Float64Array:
        """For each penalty, each row's prediction by the optimum of the rows outside its fold: (penalties, rows).

        ``fold`` is (rows,) int64, equal for rows with the same text; 0 for rows in no fold, whose predictions are 0.
        """
        fold_of_text = np.empty(len(self._weights), np.int64)
        fold_of_text[self._text] = fold
        predictions = np.zeros((len(penalties), len(fold_of_text)))
        for number in np.unique(fold[fold > 0]):
            held = np.flatnonzero(fold_of_text == number)
            predictions[:, held] = self._predict_held(held, np.array(penalties))
        return predictions[:, self._text]

    def _predict_held(self, held: Indices, penalties: Float64Array) -> Float64Array:
        """The predictions for some texts by the optimum of the others: (penalties, held)."""
        rows = _Selection(self._rows, held)
        weights, targets = self._weights[held], self._targets[held]

        def sums(span: slice, z: Float64Array) -> list[Float64Array]:
            weighted = (z * weights[span, None]).T
            return [weighted @ z, weighted @ targets[span], z.T @ weights[span]]

        square, moments, total = self._sum(rows, sums)
        # The sums over all texts are known. So those over the others are differences, from which their means are taken.
        others = self._weights.sum() - weights.sum()
        center, mean = -total / others, -float(weights @ targets) / others
        square = np.diag(self._spectrum.variances) - square - others * np.outer(center, center)
        moments = self._moments - moments - others * center * mean
        values, vectors = (array.numpy() for array in torch.linalg.eigh(torch.from_numpy(square)))
        weight = vectors @ ((vectors.T @ moments)[:, None] / (np.maximum(values, 0)[:, None] + penalties))
        predictions = np.empty((len(penalties), len(held)))  # weight: (rank, penalties)

        def predict(span: slice, z: Float64Array) -> list[Float64Array]:
            predictions[:, span] = ((z - center) @ weight).T + mean + self._mean
            return []

        self._sum(rows, predict)
        return predictions

    def _sum(self, rows: Rows, work: Callable[[slice, Float64Array], list[Float64Array]]) -> list[Float64Array]:
        """Add up what ``work`` returns for each span of texts and their features in the eigenvectors, (texts, rank)."""
        center, directions = (torch.from_numpy(array) for array in (self._spectrum.mean, self._spectrum.directions))

        def project(span: slice, features: torch.Tensor) -> list[torch.Tensor]:
            z = torch.mm(features.to(torch.float64) - center, directions).numpy()
            return [torch.from_numpy(term) for term in work(span, z)]

        return sum_over_rows(rows, project, self._threads)


class _Selection:
    """Some of the rows."""

    def __init__(self, rows: Rows, index: Indices) -> None:
        self.width, self._rows, self._index = rows.width, rows, index

    def __len__(self) -> int:
        return len(self._index)

    def take(self, positions: Indices | slice) -> Features:
        return self._rows.take(self._index[positions])
