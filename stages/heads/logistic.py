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
from ..types import Float64Array
from .dataset import Dataset, ScaledDataset, fits_in_memory
from .head import Parameters
from .stacked import class_weights

Span = tuple[int, int]
"""Rows from the first number up to the second, without it."""

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
    """How near the exact solver came to the optimum.

    Attributes:
        l2: The penalty, 1 / C in scikit-learn's terms.
        objective: The sum over the rows of class weight x cross-entropy, plus l2 / 2 x the sum of squared weights.
        gradient_norm: Euclidean norm of the objective's gradient.
        gap: Estimate of the objective minus its minimum: half the squared Newton decrement, with the preconditioner in
            place of the Hessian's inverse.
        iterations: Newton steps taken.
        passes: How often all features were multiplied with weights, and residuals with the features.
        converged: The gap is below 1e-9 of the objective; or it is below 1e-6, and rounding allows no better step.
        reason: Why the solver stopped, in words.
        seconds: Time spent.
    """

    l2: float
    objective: float
    gradient_norm: float
    gap: float
    iterations: int
    passes: int
    converged: bool
    reason: str
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
        self._scaler = train.fit_scaler(center=True, standardize=settings.standardize)
        self._train = ScaledDataset(train, self._scaler, in_memory=fits_in_memory((train,), settings.memory))
        self._threads, self._classes = threads, classes
        counts = np.bincount(self._train.targets, minlength=classes)
        self._class_weights = class_weights(settings.class_weight, counts)
        self._total_weight = float(self._class_weights @ counts)  # over all rows
        self._probabilities = np.empty((classes, len(train)), np.float32)
        self._passes = 0
        rows = len(train)
        self._spans = [(start, min(start + _SPAN_ROWS, rows)) for start in range(0, rows, _SPAN_ROWS)]
        covariance = self._covariance()
        # torch stays in this thread here; numpy would start threads of its own beside the worker threads.
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
            gradient_norm=math.sqrt(gradient.dot(gradient)),
            gap=decrement / 2,
            iterations=iteration,
            passes=self._passes - first_pass,
            converged=converged,
            reason=reason,
            seconds=time.perf_counter() - started,
        )
        return self._scaler.fold_into(scaled), convergence

    def _covariance(self) -> Float64Array:
        """(width, width): the sum over the rows of class weight x features x features^T."""
        rows, width = len(self._train), self._train.width

        def work(spans: Sequence[Span]) -> Float64Array:
            total = np.zeros((width, width))
            for start, stop in spans:
                features = torch.from_numpy(self._train.between(start, stop))
                weights = torch.from_numpy(self._class_weights[self._train.targets[start:stop]].astype(np.float32))
                total += torch.mm(features.T * weights, features).numpy()
            return total

        spans = [(start, min(start + _COVARIANCE_ROWS, rows)) for start in range(0, rows, _COVARIANCE_ROWS)]
        return sum(self._threads.map_shares(work, spans), np.zeros((width, width)))

    def _evaluate(self, point: _Point, l2: float) -> tuple[float, _Point, Float64Array]:
        """The objective, its gradient, and the mean class covariance (classes, classes). Keeps the probabilities."""
        self._passes += 1
        weight32 = torch.from_numpy(point.weight.astype(np.float32))
        bias = torch.from_numpy(point.bias)[:, None]

        def work(spans: Sequence[Span]) -> tuple[float, Float64Array, Float64Array, Float64Array]:
            value, weight_gradient = 0.0, np.zeros_like(point.weight)
            bias_gradient, covariance = np.zeros_like(point.bias), np.zeros((self._classes, self._classes))
            for start, stop in spans:
                features = torch.from_numpy(self._train.between(start, stop))
                labels = self._train.targets[start:stop]
                weights = torch.from_numpy(self._class_weights[labels])
                logits = torch.mm(weight32, features.T).to(torch.float64).add_(bias)
                logits -= logits.amax(0)
                label_logits = logits[labels, torch.arange(stop - start)]
                total = logits.exp_().sum(0)
                value += float(((total.log() - label_logits) * weights).sum())
                probabilities = logits.div_(total)
                self._probabilities[:, start:stop] = probabilities.numpy()
                weighted = probabilities * weights
                covariance += torch.diag(weighted.sum(1)).sub_(weighted @ probabilities.T).numpy()
                weighted[labels, torch.arange(stop - start)] -= weights
                weight_gradient += torch.mm(weighted.to(torch.float32), features).numpy()
                bias_gradient += weighted.sum(1).numpy()
            return value, weight_gradient, bias_gradient, covariance

        value, weight_gradient, bias_gradient, covariance = (
            sum(shares[1:], shares[0]) for shares in zip(*self._threads.map_shares(work, self._spans), strict=True)
        )
        value += l2 / 2 * float((point.weight**2).sum())
        return value, _Point(weight_gradient + l2 * point.weight, bias_gradient), covariance / self._total_weight

    def _curvature(self, direction: _Point, l2: float) -> _Point:
        """The product of the Hessian, at the point that was evaluated last, and a direction."""
        self._passes += 1
        weight32 = torch.from_numpy(direction.weight.astype(np.float32))
        bias = torch.from_numpy(direction.bias.astype(np.float32))[:, None]

        def work(spans: Sequence[Span]) -> tuple[Float64Array, Float64Array]:
            weight, bias_total = np.zeros_like(direction.weight), np.zeros_like(direction.bias)
            for start, stop in spans:
                features = torch.from_numpy(self._train.between(start, stop))
                probabilities = torch.from_numpy(self._probabilities[:, start:stop])
                weights = torch.from_numpy(self._class_weights[self._train.targets[start:stop]].astype(np.float32))
                change = torch.mm(weight32, features.T).add_(bias)
                change -= (probabilities * change).sum(0)
                change *= probabilities * weights
                weight += torch.mm(change, features).numpy()
                bias_total += change.sum(1, dtype=torch.float64).numpy()
            return weight, bias_total

        weight, bias_total = (
            sum(shares[1:], shares[0]) for shares in zip(*self._threads.map_shares(work, self._spans), strict=True)
        )
        return _Point(weight + l2 * direction.weight, bias_total)

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
