"""Multinomial logistic regression to its optimum: arrays in, a head and a certificate out.

Newton's method, its steps found by conjugate gradients (Nocedal and Wright, Numerical Optimization, 2006, chapter 7),
preconditioned. Features of real encoders are badly conditioned, and a gradient method crawls along their narrow
directions. The preconditioner is the Hessian with every row's class covariance replaced by the mean of them, A: a
Kronecker product A x G with the features' covariance G, whose inverse, penalty included, costs two products with the
eigenvectors of A and G (the structure of KFAC: Martens and Grosse, 2015). Products with the features are in float32,
sums in float64.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..settings import TrainSettings
from ..threads import WorkerThreads
from .dataset import Dataset, ScaledDataset, fits_in_memory
from .scaler import Parameters, absorb
from .stacked import class_weights

Array = npt.NDArray[np.float64]
Span = tuple[int, int]

TOLERANCE = 1e-9
"""Converged where the gain that is still to be had is estimated to be below this share of the objective."""
_ROUNDING = 1e-10
"""What rounding of the products may change the objective by, as a share of it."""
_NEAR = 1e-6
_MOST_ITERATIONS = 100
_MOST_CONJUGATE = 200
_SPAN_ROWS, _GRAM_ROWS = 512, 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvergenceReport:
    """How near an exact head is to its optimum.

    Attributes:
        l2: The penalty, 1 / C in scikit-learn's terms.
        objective: Sum over rows of (class weight x cross-entropy), plus l2 / 2 x the squared weights.
        gradient_norm: Euclidean norm of its gradient.
        gap: Estimate of how far the objective is above its minimum: half the squared Newton decrement, in the
            preconditioner's terms.
        iterations: Newton steps taken.
        passes: Times that the features were multiplied forth and back.
        converged: The estimate is below 1e-9 of the objective; or below 1e-6, and rounding leaves no lower place.
        reason: Why it stopped, in words.
        seconds: Spent on it.
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
    """Weights (classes, width) and biases (classes,), float64: a place, a step, or a gradient."""

    weight: Array
    bias: Array

    def plus(self, scale: float, other: _Point) -> _Point:
        return _Point(self.weight + scale * other.weight, self.bias + scale * other.bias)

    def dot(self, other: _Point) -> float:
        return float((self.weight * other.weight).sum() + (self.bias * other.bias).sum())


class LogisticSolver:
    """Solves for one training set, for any number of penalties; each starts where the last one ended."""

    def __init__(self, train: Dataset, *, classes: int, settings: TrainSettings, lanes: WorkerThreads) -> None:
        self._columns = train.measure(center=True, standardize=settings.standardize)
        self._source = ScaledDataset(train, self._columns, in_memory=fits_in_memory((train,), settings.memory))
        self._lanes, self._classes = lanes, classes
        counts = np.bincount(self._source.targets, minlength=classes)
        self._class_weights = class_weights(settings.class_weight, counts)
        self._weight = float(self._class_weights @ counts)  # of all rows
        self._probabilities = np.empty((classes, len(train)), np.float32)
        self._passes = 0
        rows = len(train)
        self._spans = [(start, min(start + _SPAN_ROWS, rows)) for start in range(0, rows, _SPAN_ROWS)]
        covariance = self._covariance()
        # torch's, which keeps to this thread: numpy's would start threads of its own beside the lanes.
        variances, self._directions = torch.linalg.eigh(torch.from_numpy(covariance))
        self._variances = np.maximum(variances.numpy(), 0)
        share = np.maximum(counts * self._class_weights, 1e-3) / self._weight
        self._start = _Point(np.zeros((classes, train.width)), np.log(share))

    def solve(
        self, l2: float, on_iteration: Callable[[int], None] = lambda iteration: None
    ) -> tuple[Parameters, ConvergenceReport]:
        """Minimise for one penalty, from where the last call ended.

        Args:
            l2: The penalty.
            on_iteration: Called with each Newton step's number.

        Returns:
            ``weight`` and ``bias`` for features as they are, and the certificate. With ``standardize``, the penalty is
            on the weights of the standardized columns.
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
            if iteration == _MOST_ITERATIONS:
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
                # The probabilities of the last evaluation are those of a point that is not taken; none are read again.
                converged = decrement / 2 <= _NEAR * value
                reason = "no step lowers the objective any more, for rounding"
                reason += "" if converged else "; a larger l2 is better conditioned"
                break
            point, value, gradient, covariance = moved, new_value, new_gradient, new_covariance
            iteration += 1
            on_iteration(iteration)
        self._start = point
        parameters = absorb(
            {"weight": point.weight.astype(np.float32), "bias": point.bias.astype(np.float32)}, self._columns
        )
        certificate = ConvergenceReport(
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
        return parameters, certificate

    def _covariance(self) -> Array:
        """(width, width): the sum over rows of weight x feature x feature."""
        rows, width = len(self._source), self._source.width

        def work(spans: Sequence[Span]) -> Array:
            total = np.zeros((width, width))
            for start, stop in spans:
                features = torch.from_numpy(self._source.between(start, stop))
                weights = torch.from_numpy(self._class_weights[self._source.targets[start:stop]].astype(np.float32))
                total += torch.mm(features.T * weights, features).numpy()
            return total

        return sum(
            self._lanes.run(work, [(at, min(at + _GRAM_ROWS, rows)) for at in range(0, rows, _GRAM_ROWS)]),
            np.zeros((width, width)),
        )

    def _evaluate(self, point: _Point, l2: float) -> tuple[float, _Point, Array]:
        """The objective, its gradient, and the mean class covariance (classes, classes); notes the probabilities."""
        self._passes += 1
        entry = torch.from_numpy(point.weight.astype(np.float32))
        bias = torch.from_numpy(point.bias)[:, None]

        def work(spans: Sequence[Span]) -> tuple[float, Array, Array, Array]:
            value, weight = 0.0, np.zeros_like(point.weight)
            bias_gradient, covariance = np.zeros_like(point.bias), np.zeros((self._classes, self._classes))
            for start, stop in spans:
                features = torch.from_numpy(self._source.between(start, stop))
                labels = self._source.targets[start:stop]
                weights = torch.from_numpy(self._class_weights[labels])
                logits = torch.mm(entry, features.T).to(torch.float64).add_(bias)
                logits -= logits.amax(0)
                own = logits[labels, torch.arange(stop - start)]
                total = logits.exp_().sum(0)
                value += float(((total.log() - own) * weights).sum())
                probabilities = logits.div_(total)
                self._probabilities[:, start:stop] = probabilities.numpy()
                weighted = probabilities * weights
                covariance += torch.diag(weighted.sum(1)).sub_(weighted @ probabilities.T).numpy()
                weighted[labels, torch.arange(stop - start)] -= weights
                weight += torch.mm(weighted.to(torch.float32), features).numpy()
                bias_gradient += weighted.sum(1).numpy()
            return value, weight, bias_gradient, covariance

        value, weight, bias_gradient, covariance = (
            sum(parts[1:], parts[0]) for parts in zip(*self._lanes.run(work, self._spans), strict=True)
        )
        value += l2 / 2 * float((point.weight**2).sum())
        return value, _Point(weight + l2 * point.weight, bias_gradient), covariance / self._weight

    def _curvature(self, direction: _Point, l2: float) -> _Point:
        """The Hessian, at the last evaluated point, times a direction."""
        self._passes += 1
        entry = torch.from_numpy(direction.weight.astype(np.float32))
        bias = torch.from_numpy(direction.bias.astype(np.float32))[:, None]

        def work(spans: Sequence[Span]) -> tuple[Array, Array]:
            weight, bias_total = np.zeros_like(direction.weight), np.zeros_like(direction.bias)
            for start, stop in spans:
                features = torch.from_numpy(self._source.between(start, stop))
                probabilities = torch.from_numpy(self._probabilities[:, start:stop])
                weights = torch.from_numpy(self._class_weights[self._source.targets[start:stop]].astype(np.float32))
                change = torch.mm(entry, features.T).add_(bias)
                change -= (probabilities * change).sum(0)
                change *= probabilities * weights
                weight += torch.mm(change, features).numpy()
                bias_total += change.sum(1, dtype=torch.float64).numpy()
            return weight, bias_total

        weight, bias_total = (
            sum(parts[1:], parts[0]) for parts in zip(*self._lanes.run(work, self._spans), strict=True)
        )
        return _Point(weight + l2 * direction.weight, bias_total)

    def _preconditioner(self, covariance: Array, l2: float) -> Callable[[_Point], _Point]:
        """An approximate inverse of the Hessian, from the mean class covariance."""
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, 0)
        curvatures = values[:, None] * self._variances + l2  # (classes, width)
        # Moving all biases together changes nothing: that direction, and any without curvature, is left alone.
        bias_curvatures = np.where(values > 1e-12 * max(values[-1], 1e-300), values * self._weight, np.inf)

        def invert(gradient: _Point) -> _Point:
            turned = torch.from_numpy(vectors.T @ gradient.weight) @ self._directions  # (classes, width)
            weight = (turned / torch.from_numpy(curvatures)) @ self._directions.T
            bias = vectors.T @ gradient.bias / bias_curvatures
            return _Point(vectors @ weight.numpy(), vectors @ bias)

        return invert

    def _newton_step(self, gradient: _Point, l2: float, invert: Callable[[_Point], _Point], tolerance: float) -> _Point:
        """Solve Hessian x step = -gradient by preconditioned conjugate gradients, to this share of its start."""
        step = _Point(np.zeros_like(gradient.weight), np.zeros_like(gradient.bias))
        residual = _Point(-gradient.weight, -gradient.bias)
        direction = preconditioned = invert(residual)
        size = first = residual.dot(preconditioned)
        for _ in range(_MOST_CONJUGATE):
            curved = self._curvature(direction, l2)
            curvature = direction.dot(curved)
            if curvature <= 0:  # rounding: the objective is convex
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
