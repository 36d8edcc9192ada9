"""Multinomial logistic regression to its optimum: arrays in, a head and a convergence report out."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import torch

from ..settings import TrainSettings
from ..threads import WorkerThreads
from .dataset import Dataset, ScaledDataset, Scaler, fit_scaler, fits_in_memory
from .head import Parameters
from .logistic_batch import VECTORS, WIDE, Curvature, Limits, LogisticBatch, Problem
from .stacked import class_weights

TOLERANCE = 3e-10
"""The solver has converged if the estimated gap to the optimum is below this share of the objective. On real features
the estimate was right within a factor of 1.5; the true gap is to be below 1e-9."""
_LIMITS = Limits(tolerance=TOLERANCE, rounding=1e-8, loose_tolerance=1e-6, passes=1000, history=20)
_CENTER_ROWS = 4096
_LEAST_HISTORY = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvergenceReport:
    """How near the exact solver came to the optimum."""

    l2: float  # the penalty, 1 / C in scikit-learn's terms
    objective: float  # the sum over the rows of class weight x cross-entropy, plus l2 / 2 x the sum of squared weights
    penalty: float  # the second part of it
    gradient_norm: float  # Euclidean norm of the objective's gradient
    gap: float
    """Estimate of the objective minus its minimum: half the squared Newton decrement, with L-BFGS's matrix in place
    of the Hessian's inverse."""
    iterations: int  # steps taken
    passes: int  # how often all features were multiplied with weights, and residuals with the features
    converged: bool  # the gap is below 3e-10 of the objective; or below 1e-6, and rounding allows no better step
    reason: str  # why the solver stopped, in words
    seconds: float


class LogisticSolver:
    """Solves for one training set and any number of penalties, one after the other. Each starts at the last optimum."""

    def __init__(self, train: Dataset, *, classes: int, settings: TrainSettings, threads: WorkerThreads) -> None:
        self._scaler = choose_scaler(train, standardize=settings.standardize)
        rows = ScaledDataset(train, self._scaler, in_memory=fits_in_memory((train,), settings.memory))
        counts = np.bincount(rows.targets, minlength=classes)
        weights = class_weights(settings.class_weight, counts)
        dtype = torch.float32 if classes * train.width > WIDE else torch.float64
        vector = classes * (train.width + 1) * dtype.itemsize
        self._limits = dataclasses.replace(_LIMITS, history=history_within(settings.memory, vector, _LIMITS.history))
        self._batch = LogisticBatch(
            rows,
            rows.targets,
            class_weights=weights[None],
            fold=None,
            curvature=Curvature(rows, weights[rows.targets], threads, dtype),
            column_scales=None,
            threads=threads,
            dtype=dtype,
        )
        share = np.maximum(counts * weights, 1e-3) / float(weights @ counts)
        self._bias = np.log(share)
        self._last: Problem | None = None

    def solve(
        self, l2: float, on_iteration: Callable[[int], None] = lambda iteration: None
    ) -> tuple[Parameters, ConvergenceReport]:
        """Minimise the objective for one penalty.

        Args:
            l2: The penalty. With ``standardize``, it applies to the weights of the standardized columns.
            on_iteration: Called with the number of each step.

        Returns:
            ``weight`` and ``bias`` for raw features, and how near to the optimum they are.
        """
        started = time.perf_counter()
        if self._last is None:
            problem = self._batch.begin(0, l2, self._bias)
            self._batch.evaluate([problem])
        else:
            problem = self._last.with_penalty(l2)
        self._batch.solve([problem], self._limits, on_pass=lambda: on_iteration(problem.steps))
        problem.forget(keep_pairs=self._limits.history == _LIMITS.history)
        self._last = problem
        scaled: Parameters = {
            "weight": problem.point[:, :-1].numpy().astype(np.float32),
            "bias": problem.point[:, -1].numpy().astype(np.float32),
        }
        convergence = ConvergenceReport(
            l2=l2,
            objective=problem.value,
            penalty=l2 / 2 * float(problem.point[:, :-1].square().sum()),
            gradient_norm=math.sqrt(float(problem.gradient.square().sum())),
            gap=problem.gap,
            iterations=problem.steps,
            passes=problem.passes,
            converged=problem.converged,
            reason=problem.reason,
            seconds=time.perf_counter() - started,
        )
        return self._scaler.fold_into(scaled), convergence


def choose_scaler(train: Dataset, *, standardize: bool) -> Scaler:
    """Center columns, and standardize them if asked to.

    The bias is not penalised, so that any center has the same optimum. Without ``standardize``, the means of some rows
    are near enough to the columns' means to keep products exact.
    """
    if standardize:
        return fit_scaler(train, center=True, standardize=True)
    rows = np.linspace(0, len(train) - 1, min(len(train), _CENTER_ROWS)).astype(np.int64)
    return fit_scaler(dataclasses.replace(train, index=train.index[rows]), center=True, standardize=False)


def history_within(memory: int | None, vector: int, most: int) -> int:
    """How many pairs of vectors of so many bytes L-BFGS may keep, so that a problem takes no more than half of the
    memory bound; but two, however small it is."""
    return most if memory is None else min(max((memory // 2 // vector - VECTORS) // 2, _LEAST_HISTORY), most)
