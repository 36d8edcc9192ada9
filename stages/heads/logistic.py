"""Multinomial logistic regression to its optimum: arrays in, a head and a convergence report out.

The method is Newton's, with each step solved for by preconditioned conjugate gradients (Nocedal and Wright, Numerical
Optimization, 2006, chapter 7). The features of real encoders are ill-conditioned, and a gradient method would crawl
along their narrow directions. The preconditioner is the Hessian with every row's class covariance replaced by the mean
class covariance A. It is the Kronecker product of A and the feature covariance G. Its inverse, penalty included, costs
two products with the eigenvectors of A and G, as in KFAC (Martens and Grosse, 2015). Products with the features are in
float32, sums in float64.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..settings import TrainSettings
from ..threads import WorkerThreads
from ..types import Float64Array, Indices
from .dataset import Dataset, ScaledDataset, fit_scaler, fits_in_memory
from .head import Parameters
from .stacked import class_weights

Tensor = torch.Tensor
SpanWork = Callable[[slice, Tensor, Indices, Tensor], list[Tensor]]
"""Computes on a span of rows. It is given the span, and its features (rows, width) float32, labels (rows,) int64 and
class weights (rows,) float64."""

TOLERANCE = 1e-9
"""The solver has converged if the estimated gap to the optimum is below this share of the objective."""
_ROUNDING = 1e-10
"""Rounding of the products may change the objective by this share."""
_LOOSE_TOLERANCE = 1e-6
"""The gap at which the solver still counts as converged if rounding allows no better step."""
_MAX_NEWTON_STEPS = 100
_MAX_CONJUGATE_STEPS = 200
_SPAN_ROWS, _COVARIANCE_ROWS = 512, 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvergenceReport:
    """How near the exact solver came to the optimum."""

    l2: float  # the penalty, 1 / C in scikit-learn's terms
    objective: float  # the sum over the rows of class weight x cross-entropy, plus l2 / 2 x the sum of squared weights
    penalty: float  # the second part of it
    gradient_norm: float  # Euclidean norm of the objective's gradient
    gap: float
    """Estimate of the objective minus its minimum: half the squared Newton decrement, with the preconditioner in place
    of the Hessian's inverse."""
    iterations: int  # Newton steps taken
    passes: int  # how often all features were multiplied with weights, and residuals with the features
    converged: bool  # the gap is below 1e-9 of the objective; or it is below 1e-6, and rounding allows no better step
    reason: str  # why the solver stopped, in words
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Point:
    """Weights (classes, width) and biases (classes,), float64: a point, a step, or a gradient."""

    weight: Float64Array
    bias: Float64Array

    def plus(self, scale: float, other: _Point) -> _Point:
        return _Point(self.weight + scale * other.weight, self.bias + scale * other.bias)

    def dot(self, other: _Point) -> float:
        return float((self.weight * other.weight).sum() + (self.bias * other.bias).sum())


class LogisticSolver:
    """Solves for one training set and any number of penalties, one after the other. Each starts at the last optimum."""

    def __init__(self, train: Dataset, *, classes: int, settings: TrainSettings, threads: WorkerThreads) -> None:
        self._scaler = fit_scaler(train, center=True, standardize=settings.standardize)
        self._train = ScaledDataset(train, self._scaler, in_memory=fits_in_memory((train,), settings.memory))
        self._threads, self._classes = threads, classes
        counts = np.bincount(self._train.targets, minlength=classes)
        self._class_weights = class_weights(settings.class_weight, counts)
        self._total_weight = float(self._class_weights @ counts)  # over all rows
        self._probabilities = np.empty((classes, len(train)), np.float32)
        self._passes = 0
        # The sum over the rows of class weight x features x features^T, (width, width). Its eigenvectors are torch's,
        # which stays in this thread here; numpy would start threads of its own beside the worker threads.
        (covariance,) = self._sum_over_rows(
            lambda span, features, labels, weights: [torch.mm(features.T * weights.to(torch.float32), features)],
            _COVARIANCE_ROWS,
        )
        variances, self._directions = torch.linalg.eigh(torch.from_numpy(covariance))
        self._variances = np.maximum(variances.numpy(), 0)
        share = np.maximum(counts * self._class_weights, 1e-3) / self._total_weight
        self._start = _Point(np.zeros((classes, train.width)), np.log(share))

    def solve(
        self, l2: float, on_iteration: Callable[[int], None] = lambda iteration: None
    ) -> tuple[Parameters, ConvergenceReport]:
        """Minimise the objective for one penalty.

        Args:
            l2: The penalty. With ``standardize``, it applies to the weights of the standardized columns.
            on_iteration: Called with the number of each Newton step.

        Returns:
            ``weight`` and ``bias`` for raw features, and how near to the optimum they are.
        """
        started, first_pass = time.perf_counter(), self._passes
        point = self._start
        value, gradient, covariance = self._evaluate(point, l2)
        iteration = 0
        while True:
            invert = self._preconditioner(covariance, l2)
            preconditioned = invert(gradient)
            decrement = gradient.dot(preconditioned)
            if decrement / 2 <= TOLERANCE * value:
                reason, converged = f"the gain to be had is below {TOLERANCE:g} of the objective", True
                break
            if iteration == _MAX_NEWTON_STEPS:
                reason, converged = f"{iteration} iterations are over; a larger l2 converges sooner", False
                break
            step = self._newton_step(gradient, l2, invert, min(0.1, math.sqrt(decrement / value)))
            slope, length = gradient.dot(step), 1.0
            while True:
                moved = point.plus(length, step)
                new_value, new_gradient, new_covariance = self._evaluate(moved, l2)
                if new_value <= value + 1e-4 * length * slope:
                    break
                length /= 2
                if -slope * length < _ROUNDING * value:
                    break
            if not new_value < value:
                # self._probabilities belong now to the rejected point; that is harmless, as none are read again.
                converged = decrement / 2 <= _LOOSE_TOLERANCE * value
                reason = "no step lowers the objective any more, for rounding"
                reason += "" if converged else "; a larger l2 is better conditioned"
                break
            point, value, gradient, covariance = moved, new_value, new_gradient, new_covariance
            iteration += 1
            on_iteration(iteration)
        self._start = point
        scaled: Parameters = {"weight": point.weight.astype(np.float32), "bias": point.bias.astype(np.float32)}
        convergence = ConvergenceReport(
            l2=l2,
            objective=value,
            penalty=l2 / 2 * float((point.weight**2).sum()),
            gradient_norm=math.sqrt(gradient.dot(gradient)),
            gap=decrement / 2,
            iterations=iteration,
            passes=self._passes - first_pass,
            converged=converged,
            reason=reason,
            seconds=time.perf_counter() - started,
        )
        return self._scaler.fold_into(scaled), convergence

    def _sum_over_rows(self, work: SpanWork, span_rows: int) -> list[Float64Array]:
        """Call ``work`` with each span of rows, in threads, and add up each of the tensors that it returns."""

        def sum_share(starts: Sequence[int]) -> list[Tensor]:
            totals: list[Tensor] = []
            for start in starts:
                span = slice(start, start + span_rows)
                features, labels = torch.from_numpy(self._train.take(span)), self._train.targets[span]
                weights = torch.from_numpy(self._class_weights[labels])
                terms = [term.to(torch.float64) for term in work(span, features, labels, weights)]
                totals = [total.add_(term) for total, term in zip(totals, terms, strict=True)] if totals else terms
            return totals

        shares = self._threads.map_shares(sum_share, range(0, len(self._train), span_rows))
        return [sum(others, first).numpy() for first, *others in zip(*shares, strict=True)]

    def _evaluate(self, point: _Point, l2: float) -> tuple[float, _Point, Float64Array]:
        """The objective, its gradient, and the mean class covariance (classes, classes). Keeps the probabilities."""
        self._passes += 1
        point_weight = torch.from_numpy(point.weight.astype(np.float32))
        point_bias = torch.from_numpy(point.bias)[:, None]

        def work(span: slice, features: Tensor, labels: Indices, weights: Tensor) -> list[Tensor]:
            logits = torch.mm(point_weight, features.T).to(torch.float64).add_(point_bias)  # (classes, rows)
            logits -= logits.amax(0)
            rows = torch.arange(len(labels))
            label_logits = logits[labels, rows]
            total = logits.exp_().sum(0)
            value = ((total.log() - label_logits) * weights).sum()
            probabilities = logits.div_(total)
            self._probabilities[:, span] = probabilities.numpy()
            weighted = probabilities * weights
            covariance = torch.diag(weighted.sum(1)).sub_(weighted @ probabilities.T)
            weighted[labels, rows] -= weights
            return [value, torch.mm(weighted.to(torch.float32), features), weighted.sum(1), covariance]

        value, weight, bias, covariance = self._sum_over_rows(work, _SPAN_ROWS)
        penalty = l2 / 2 * float((point.weight**2).sum())
        return float(value) + penalty, _Point(weight + l2 * point.weight, bias), covariance / self._total_weight

    def _curvature(self, direction: _Point, l2: float) -> _Point:
        """The product of the Hessian, at the point that was evaluated last, and a direction."""
        self._passes += 1
        direction_weight = torch.from_numpy(direction.weight.astype(np.float32))
        direction_bias = torch.from_numpy(direction.bias.astype(np.float32))[:, None]

        def work(span: slice, features: Tensor, labels: Indices, weights: Tensor) -> list[Tensor]:
            probabilities = torch.from_numpy(self._probabilities[:, span])
            change = torch.mm(direction_weight, features.T).add_(direction_bias)  # (classes, rows)
            change -= (probabilities * change).sum(0)
            change *= probabilities * weights.to(torch.float32)
            return [torch.mm(change, features), change.sum(1, dtype=torch.float64)]

        weight, bias = self._sum_over_rows(work, _SPAN_ROWS)
        return _Point(weight + l2 * direction.weight, bias)

    def _preconditioner(self, covariance: Float64Array, l2: float) -> Callable[[_Point], _Point]:
        """Make a function that multiplies by an approximate inverse of the Hessian, from the mean class covariance."""
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, 0)
        curvatures = values[:, None] * self._variances + l2  # (classes, width)
        # To add one number to all biases changes nothing: no step is taken in a direction without curvature.
        bias_curvatures = np.where(values > 1e-12 * max(values[-1], 1e-300), values * self._total_weight, np.inf)

        def invert(gradient: _Point) -> _Point:
            rotated = torch.from_numpy(vectors.T @ gradient.weight) @ self._directions  # (classes, width)
            weight = (rotated / torch.from_numpy(curvatures)) @ self._directions.T
            bias = vectors.T @ gradient.bias / bias_curvatures
            return _Point(vectors @ weight.numpy(), vectors @ bias)

        return invert

    def _newton_step(self, gradient: _Point, l2: float, invert: Callable[[_Point], _Point], tolerance: float) -> _Point:
        """Solve Hessian x step = -gradient by preconditioned conjugate gradients.

        Stops when the residual's norm, in the preconditioner's metric, is the tolerance times its first value.
        """
        step = _Point(np.zeros_like(gradient.weight), np.zeros_like(gradient.bias))
        residual = _Point(-gradient.weight, -gradient.bias)
        direction = preconditioned = invert(residual)
        size = first = residual.dot(preconditioned)
        for _ in range(_MAX_CONJUGATE_STEPS):
            curved = self._curvature(direction, l2)
            curvature = direction.dot(curved)
            if curvature <= 0:  # by rounding alone, since the objective is convex
                break
            length = size / curvature
            step, residual = step.plus(length, direction), residual.plus(-length, curved)
            preconditioned = invert(residual)
            new_size = residual.dot(preconditioned)
            if new_size <= tolerance**2 * first:
                break
            direction = preconditioned.plus(new_size / size, direction)
            size = new_size
        return step if gradient.dot(step) < 0 else invert(_Point(-gradient.weight, -gradient.bias))
