"""Many penalised logistic regressions of two sides, solved together to their optima: arrays in, arrays out.

One-vs-rest and ordinal regression are both made of them. A problem has one weight for each column, and some biases. For
each row and bias, the margin (features x weight + bias) is the logit of the row being above: in one-vs-rest the only
bias says whether the row has the label, in ordinal regression bias j says whether its class is above j.

The method is that of `logistic`: Newton's, with each step solved for by conjugate gradients, which eigenvectors of the
features' covariance precondition. All problems share each product with the features, and each has steps of its own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import torch

from ..threads import WorkerThreads
from ..types import Features, Float64Array, Indices, Mask
from .logistic import ConvergenceReport
from .spectrum import Rows, Spectrum, sum_over_rows

Tensor = torch.Tensor
Terms = Callable[[Indices, slice], tuple[Tensor, Tensor]]
"""Given problems and a span of rows, says for each problem (or one for all), bias and row: whether the row is above,
and its weight, 0 where it does not count. Both are (problems or 1, biases, rows) float64."""

TOLERANCE = 1e-9
"""A problem has converged if the estimated gap to its optimum is below this share of its objective."""
_ROUNDING = 1e-10
"""Rounding of the products may change an objective by this share."""
_LOOSE_TOLERANCE = 1e-6
"""The gap at which a problem still counts as converged if rounding allows no better step."""
_UNSEEN = 0.5
_MAX_NEWTON_STEPS = 100
_MAX_CONJUGATE_STEPS = 200
_SPAN_ROWS, _SPAN_NUMBERS = 512, 1 << 20


@dataclasses.dataclass
class _State:
    """Where each problem stands. A point is (width + biases,): its weight, then its biases."""

    points: Float64Array  # (problems, width + biases)
    values: Float64Array  # (problems,), the objectives
    gradients: Float64Array  # (problems, width + biases)
    curvatures: Float64Array  # (problems,), the sum over rows of the loss's second derivative
    bias_curvatures: Float64Array  # (problems, biases, biases), the Hessian of the biases

    def set(self, problems: Indices, other: _State, chosen: Indices) -> None:
        """Take over some of the problems of another state."""
        for field in dataclasses.fields(self):
            getattr(self, field.name)[problems] = getattr(other, field.name)[chosen]


class BinaryProblems:
    """Solves the problems for any number of penalties, one after the other. Each starts at the last optima.

    A problem's objective is the sum over rows and biases of weight x binary cross-entropy, plus l2 / 2 x the sum of its
    squared weights. With several biases it also has the term that `ordinal` explains, which keeps them in descending
    order: -log(1 - exp(bias j + 1 - bias j)) for each row of class j + 1.

    A class without rows counts as half a row whose features are the mean, so that every optimum is finite. A problem
    with one bias then has no weights, and a bias that says how many rows it has seen.
    """

    def __init__(
        self, rows: Rows, terms: Terms, counts: Float64Array, *, spectrum: Spectrum, threads: WorkerThreads
    ) -> None:
        """Prepare to solve.

        Args:
            rows: The features of the rows, centered.
            terms: What is true of the rows.
            counts: (problems, biases + 1) float64, the weight of all rows of each class. The class is the number of
                biases that a row is above.
            spectrum: Of all rows, each with the weight 1.
            threads: Threads to compute in.
        """
        self._rows, self._terms, self._spectrum, self._threads = rows, terms, spectrum, threads
        self._unseen = np.where(counts > 0, 0, _UNSEEN)
        self._counts = counts + self._unseen
        above = np.cumsum(self._counts[:, :0:-1], axis=1)[:, ::-1]
        start = np.log(above / (self._counts.sum(axis=1, keepdims=True) - above))
        self._points = np.concatenate([np.zeros((len(counts), rows.width)), start], axis=1)
        self._passes = 0

    def solve(
        self, l2: float, *, tolerance: float = TOLERANCE, on_iteration: Callable[[int], None] = lambda iteration: None
    ) -> tuple[Float64Array, Float64Array, ConvergenceReport]:
        """Minimise all objectives for one penalty.

        Args:
            l2: The penalty, above 0: 1 / C in scikit-learn.
            tolerance: The gap to the optimum that is near enough, as a share of each objective.
            on_iteration: Called with the number of each Newton step.

        Returns:
            The weights (problems, width), the biases (problems, biases), and how near to the optima all of them are.
        """
        started, self._passes = time.perf_counter(), 0
        problems, width = len(self._points), self._rows.width
        seconds = np.empty((problems, self._points.shape[1] - width, len(self._rows)), np.float32)
        active = np.arange(problems)
        state = self._evaluate(active, self._points.copy(), l2, seconds)
        gaps, iteration = np.full(problems, np.inf), 0
        while len(active) and iteration < _MAX_NEWTON_STEPS:
            step = self._newton_steps(active, state, l2, seconds)
            slope = (state.gradients[active] * step).sum(axis=1)
            gap, last = -slope / 2, gaps[active]
            gaps[active] = gap
            loose = gap <= _LOOSE_TOLERANCE * state.values[active]
            done = (gap <= tolerance * state.values[active]) | (loose & (gap > last / 4))  # rounding allows no better
            moved = self._search(active, step, slope, state, l2, seconds)
            active = active[moved & ~done]
            iteration += 1
            on_iteration(iteration)
        self._points = state.points
        converged = bool((gaps <= np.maximum(tolerance, _LOOSE_TOLERANCE) * state.values).all())
        strictly = bool((gaps <= tolerance * state.values).all())
        reason = f"the gain to be had is below {tolerance:g} of the objective"
        if not strictly:
            reason = "no step lowers the objective any more, for rounding"
            reason = f"{iteration} iterations are over" if len(active) else reason
            reason += "" if converged else "; a larger l2 is better conditioned"
        return (
            state.points[:, :width],
            state.points[:, width:],
            ConvergenceReport(
                l2=l2,
                objective=float(state.values.sum()),
                penalty=l2 / 2 * float((state.points[:, :width] ** 2).sum()),
                gradient_norm=float(np.linalg.norm(state.gradients)),
                gap=float(gaps.sum()),
                iterations=iteration,
                passes=self._passes,
                converged=converged and not len(active),
                reason=reason,
                seconds=time.perf_counter() - started,
            ),
        )

    def _search(
        self, active: Indices, steps: Float64Array, slopes: Float64Array, state: _State, l2: float, seconds: Features
    ) -> Mask:
        """Take each problem's step, or half of it as often as that lowers its objective; returns which have moved."""
        lengths, moved = np.ones(len(active)), np.zeros(len(active), bool)
        trying = np.arange(len(active))
        while len(trying):
            problems = active[trying]
            points = state.points[problems] + lengths[trying, None] * steps[trying]
            found, values = self._evaluate(problems, points, l2, seconds), state.values[problems]
            gain = -lengths[trying] * slopes[trying]
            # Near the optimum an objective is less exact than its gradient, which the whole step is made from.
            rounding = np.where(gain <= 2 * _LOOSE_TOLERANCE * values, _LOOSE_TOLERANCE, _ROUNDING) * values
            good = found.values <= values - 1e-4 * gain + rounding
            chosen = np.flatnonzero(good)
            state.set(problems[chosen], found, chosen)
            moved[trying[chosen]] = True
            trying = trying[~good & (gain / 2 >= _ROUNDING * values)]
            lengths[trying] /= 2
        return moved

    def _evaluate(self, problems: Indices, points: Float64Array, l2: float, seconds: Features) -> _State:
        """These problems' objectives at these points. Keeps the second derivatives of the rows' losses."""
        self._passes += 1
        width = self._rows.width
        weight, bias = torch.from_numpy(points[:, :width].astype(np.float32)), torch.from_numpy(points[:, width:])

        def work(span: slice, features: Tensor) -> list[Tensor]:
            above, weights = self._terms(problems, span)
            margins = torch.mm(weight, features.T).to(torch.float64)[:, None] + bias[:, :, None]
            losses = (torch.nn.functional.softplus(margins) - above * margins).mul_(weights)
            chances = torch.sigmoid_(margins)
            second = chances * (1 - chances) * weights
            seconds[problems, :, span] = second.numpy()
            residuals = (chances - above).mul_(weights)
            gradient = torch.mm(residuals.sum(1).to(torch.float32), features)
            return [losses.sum((1, 2)), gradient, residuals.sum(2), second.sum(2)]

        value, weight_gradient, bias_gradient, second = sum_over_rows(
            self._rows, work, self._threads, span_rows=self._span_rows(len(problems))
        )
        biases = points[:, width:]
        for row, sign in ((self._unseen[problems, :-1], 1.0), (self._unseen[problems, 1:], -1.0)):  # below, above
            chances = 1 / (1 + np.exp(-sign * biases))
            value += (row * np.logaddexp(0, sign * biases)).sum(axis=1)
            bias_gradient += row * sign * chances
            second += row * chances * (1 - chances)
        hessian = second[:, :, None] * np.eye(biases.shape[1])
        if biases.shape[1] > 1:
            gaps, counts = biases[:, :-1] - biases[:, 1:], self._counts[problems, 1:-1]
            with np.errstate(invalid="ignore", divide="ignore"):
                value += np.where(gaps > 0, -counts * np.log(-np.expm1(-gaps)), np.inf).sum(axis=1)
                push = counts / np.expm1(gaps)
                bend = push / -np.expm1(-gaps)
            bias_gradient[:, :-1] -= push
            bias_gradient[:, 1:] += push
            for j in range(gaps.shape[1]):
                hessian[:, j : j + 2, j : j + 2] += bend[:, j, None, None] * np.array([[1, -1], [-1, 1]])
        value += l2 / 2 * (points[:, :width] ** 2).sum(axis=1)
        gradients = np.concatenate([weight_gradient + l2 * points[:, :width], bias_gradient], axis=1)
        return _State(points, value, gradients, second.sum(axis=1), hessian)

    def _curve(
        self, problems: Indices, directions: Float64Array, state: _State, l2: float, seconds: Features
    ) -> Float64Array:
        """The products of these problems' Hessians and directions, (problems, width + biases)."""
        self._passes += 1
        width = self._rows.width
        weight, bias = (torch.from_numpy(part.astype(np.float32)) for part in np.split(directions, [width], axis=1))

        def work(span: slice, features: Tensor) -> list[Tensor]:
            second = torch.from_numpy(seconds[problems, :, span])
            change = torch.mm(weight, features.T)
            both = (change[:, None] * second).sum(2, dtype=torch.float64)
            change = ((change[:, None] + bias[:, :, None]) * second).sum(1)
            return [torch.mm(change, features), both]

        weight_part, bias_part = sum_over_rows(
            self._rows, work, self._threads, span_rows=self._span_rows(len(problems))
        )
        bias_part += (state.bias_curvatures[problems] @ directions[:, width:, None])[:, :, 0]
        return np.concatenate([weight_part + l2 * directions[:, :width], bias_part], axis=1)

    def _newton_steps(self, active: Indices, state: _State, l2: float, seconds: Features) -> Float64Array:
        """Solve Hessian x step = -gradient for each problem by preconditioned conjugate gradients.

        The preconditioner is the Hessian with every row's second derivative replaced by their mean. A problem stops
        when its residual's norm, in the preconditioner's metric, is small beside its first value.
        """
        width = self._rows.width
        directions = torch.from_numpy(self._spectrum.directions)
        bias_inverse = np.linalg.inv(state.bias_curvatures[active])
        curvatures = state.curvatures[active, None] / len(self._rows)
        factors = torch.from_numpy(1 / (curvatures * self._spectrum.variances + l2) - 1 / l2)  # (active, rank)

        def invert(which: Indices, vectors: Float64Array) -> Float64Array:
            weight = torch.from_numpy(vectors[:, :width])
            weight = weight / l2 + (weight @ directions * factors[which]) @ directions.T
            bias = (bias_inverse[which] @ vectors[:, width:, None])[:, :, 0]
            return np.concatenate([weight.numpy(), bias], axis=1)

        steps, residuals = np.zeros_like(state.gradients[active]), -state.gradients[active]
        running = np.arange(len(active))
        toward = preconditioned = invert(running, residuals)
        first = sizes = (residuals * preconditioned).sum(axis=1)
        tolerance = np.minimum(0.1, np.sqrt(first / np.abs(state.values[active])))
        toward = toward.copy()
        for _ in range(_MAX_CONJUGATE_STEPS):
            curved = self._curve(active[running], toward[running], state, l2, seconds)
            curvature = (toward[running] * curved).sum(axis=1)
            fine = curvature > 0  # else by rounding alone, since the objectives are convex
            running, curved, curvature = running[fine], curved[fine], curvature[fine]
            lengths = sizes[running] / curvature
            steps[running] += lengths[:, None] * toward[running]
            residuals[running] -= lengths[:, None] * curved
            preconditioned = invert(running, residuals[running])
            new_sizes = (residuals[running] * preconditioned).sum(axis=1)
            on = new_sizes > tolerance[running] ** 2 * first[running]
            toward[running] = preconditioned + (new_sizes / sizes[running])[:, None] * toward[running]
            sizes = sizes.copy()
            sizes[running] = new_sizes
            running = running[on]
            if not len(running):
                break
        idle = np.flatnonzero((steps * state.gradients[active]).sum(axis=1) >= 0)  # by rounding alone, too
        steps[idle] = invert(idle, -state.gradients[active[idle]])
        return steps

    def _span_rows(self, problems: int) -> int:
        numbers: int = problems * (self._points.shape[1] - self._rows.width)
        return max(16, min(_SPAN_ROWS, _SPAN_NUMBERS // numbers))
