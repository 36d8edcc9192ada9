"""Many logistic regressions on the same rows at once, each to its optimum.

The method is L-BFGS (Nocedal and Wright, Numerical Optimization, 2006, algorithm 7.4): a pass over the rows gives every
problem's objective and gradient, in two matrix products for all problems. The features of real encoders are
ill-conditioned, and L-BFGS alone would crawl along their narrow directions. It starts from an approximate inverse of
the Hessian: that of the Kronecker product of A and G plus the penalty, where A is the problem's class covariance,
averaged over the rows, and G the covariance of the features, as in KFAC (Martens and Grosse, 2015). G is shared by all
problems. Products with the features are in float32, sums in float64.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..threads import SHARES, WorkerThreads
from ..types import Float64Array, Indices
from .spectrum import Rows, sum_over_rows

Tensor = torch.Tensor
HeldOut = Callable[[slice, Tensor], None]
"""Is given a span of rows and the logits of all problems there, (problems, classes, rows)."""

_SPAN_FEATURES, _SPAN_LOGITS = 1 << 20, 1 << 19
"""So many features and logits, at most, are worked on at a time: they stay in the processor's cache."""
_LEAST_SPAN, _MOST_SPAN = 64, 4096
WIDE = 1 << 20
"""Of problems with more weights than this, threads share one sum, and divide its classes: a sum for each thread would
take more memory than all else."""
VECTORS = 8
"""A wide problem takes so many times the bytes of its weights, and twice that for each pair of L-BFGS."""
_BLOCK_CLASSES = 64  # classes whose sum, or step, is worked on at a time
_FEW_COLUMNS = 8
"""Fewer columns of weights are the right factor in a product with the features. With two of them that took half the
time, on AVX-512; with nine it took longer."""
_FULL_CLASSES = 256
"""With more classes, only the diagonal of the class covariance counts."""
_SAMPLE = 512
_SPREAD = 0.1
"""Features count as uncorrelated if the eigenvalues of their correlations have no larger variance. All are 1 then."""
_ROWS_PER_COLUMN = 32
"""So many rows for each column give the covariance: its eigenvalues are right within a third."""
_FULL_WIDTH, _RANK = 1536, 768
"""Of wider features, only so many directions are found; the variance in all others is taken to be the same."""


class Curvature:
    """The mean of weight x features x features^T over the rows: directions x diag(variances) x directions^T, and the
    variance in all other directions.

    Uncorrelated features have no directions but the columns themselves. Which of the forms it is depends on the
    features alone.
    """

    def __init__(self, rows: Rows, weights: Float64Array, threads: WorkerThreads, dtype: torch.dtype) -> None:
        """Find the curvature of centered rows with these weights, (rows,)."""
        self.directions: Tensor | None = None  # (width, rank), orthonormal columns
        self.rest: Tensor | None = None  # of the directions that are left out
        mean_weight = float(weights.mean())

        def sample(number: int) -> Tensor:
            positions = np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(np.int64)
            root = np.sqrt(weights[positions] / mean_weight).astype(np.float32)
            return torch.from_numpy(rows.take(positions) * root[:, None])

        some = sample(_SAMPLE)
        variances = some.square().mean(0, dtype=torch.float64)
        if _spread_of_eigenvalues(some, variances) < _SPREAD:
            self.variances = (variances * mean_weight).to(dtype)
            return
        count = min(_ROWS_PER_COLUMN * rows.width, len(rows))
        every = _Every(rows, weights / mean_weight, count)
        if rows.width <= _FULL_WIDTH:
            (covariance,) = sum_over_rows(every, lambda span, x: [torch.mm(x.T, x)], threads)
            variances, directions = torch.linalg.eigh(torch.from_numpy(covariance / len(every)))
        else:
            some = sample(4 * _RANK)
            directions = torch.linalg.qr(some[:: max(1, len(some) // _RANK)].T)[0]
            directions = torch.linalg.qr(torch.mm(some.T, torch.mm(some, directions)))[0]
            inner = torch.mm(some, directions)
            variances, rotation = torch.linalg.eigh(torch.mm(inner.T, inner).to(torch.float64) / len(some))
            directions = torch.mm(directions.to(torch.float64), rotation)
            others = rows.width - len(variances)
            total = float(some.square().sum(dtype=torch.float64)) / len(some)
            self.rest = torch.tensor(max(total - float(variances.sum()), 0.0) / others * mean_weight, dtype=dtype)
        self.directions = directions.to(dtype)
        self.variances = (variances.clamp(min=0) * mean_weight).to(dtype)

    def invert(self, gradient: Tensor, values: Tensor, l2: Tensor) -> Tensor:
        """Multiply by the inverse of values x curvature + l2.

        Shapes are (problems, classes, width) for the gradient, (problems, classes) for the values, (problems,) for l2.
        """
        values, l2 = values[:, :, None], l2[:, None, None]
        if self.directions is None:
            return gradient / (values * self.variances + l2)
        shape = (*gradient.shape[:2], -1)
        along = torch.mm(gradient.flatten(0, 1), self.directions).view(shape)
        inverse = 1 / (values * self.variances + l2)
        if self.rest is None:
            return torch.mm((along * inverse).flatten(0, 1), self.directions.T).view(gradient.shape)
        rest = 1 / (values * self.rest + l2)
        return gradient * rest + torch.mm((along * (inverse - rest)).flatten(0, 1), self.directions.T).view(shape)


class _Every:
    """Some of the rows, spread evenly over all, times the roots of their weights."""

    def __init__(self, rows: Rows, weights: Float64Array, count: int) -> None:
        self._rows, self.width = rows, rows.width
        self._positions = np.linspace(0, len(rows) - 1, count).astype(np.int64)
        self._roots = np.sqrt(weights).astype(np.float32)
        self._plain = bool((weights == 1).all())

    def __len__(self) -> int:
        return len(self._positions)

    def take(self, positions: Indices | slice) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        chosen = self._positions[positions]
        if len(self) == len(self._rows) and isinstance(positions, slice):
            features = self._rows.take(positions)
        else:
            features = self._rows.take(chosen)
        return features if self._plain else features * self._roots[chosen, None]


def _spread_of_eigenvalues(sample: Tensor, variances: Tensor) -> float:
    """The variance of the eigenvalues of the columns' correlations, from some rows, without the sample's own share.

    The sum of the squares of a covariance's eigenvalues is the mean of (x . y)^2 over pairs of different rows.
    """
    rows, width = sample.shape
    if rows < 2:
        return 0.0
    scaled = sample / variances.sqrt().clamp(min=1e-12 * float(variances.max().sqrt()) + 1e-300).to(torch.float32)
    products = torch.mm(scaled, scaled.T).to(torch.float64).square_()
    squares = float(products.sum() - products.diagonal().sum()) / (rows * (rows - 1))
    return squares / width - 1


@dataclasses.dataclass(kw_only=True, eq=False)
class Problem:
    """One logistic regression on the way to its optimum. Tensors are (classes, width + 1): weights, then the bias."""

    fold: int  # the rows of this fold are left out; 0 for none
    l2: float
    point: Tensor
    value: float = math.inf
    gradient: Tensor
    covariance: Tensor | None = None  # the sum of the class covariances: (classes, classes), or the diagonal
    pairs: list[tuple[Tensor, Tensor, float]] = dataclasses.field(default_factory=list)
    """Steps, how the gradient changed along each, and the inverse of their product; the oldest first."""
    step: Tensor | None = None  # the step to be tried
    slope: float = 0.0
    length: float = 1.0
    gap: float = math.inf
    """Estimate of the objective minus its minimum: half the squared Newton decrement, with L-BFGS's matrix in place of
    the inverse Hessian."""
    steps: int = 0
    passes: int = 0
    converged: bool = False
    reason: str = ""  # why it stopped, in words

    def with_penalty(self, l2: float) -> Problem:
        """The same problem with another penalty, at the same point. What is known of it stays known."""
        more = l2 - self.l2
        weight = self.point.clone()
        weight[:, -1] = 0
        pairs = []
        for step, old_change, _ in self.pairs:
            change = old_change.add(step, alpha=more)
            change[:, -1] = old_change[:, -1]
            if (product := _dot(step, change)) > 0:
                pairs.append((step, change, 1 / product))
        return Problem(
            fold=self.fold,
            l2=l2,
            point=self.point,
            value=self.value + more / 2 * _dot(weight, weight),
            gradient=self.gradient + more * weight,
            covariance=self.covariance,
            pairs=pairs,
        )

    def forget(self, *, keep_pairs: bool) -> None:
        """Let go of what a solved problem need not know any more."""
        self.step = None
        if not keep_pairs:
            self.pairs = []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """When a problem is solved."""

    tolerance: float  # the gap to the optimum is below this share of the objective
    rounding: float  # rounding of the products may change the objective by this share
    loose_tolerance: float  # the gap at which a problem is still solved if rounding allows no better step
    passes: int  # most of them for a problem
    history: int  # most pairs that L-BFGS keeps
    floor: float = 0.0  # an objective below this is taken as this, where a gap is compared with it


class LogisticBatch:
    """Rows, with labels and weights, on which problems are solved."""

    def __init__(
        self,
        rows: Rows,
        targets: Indices,
        *,
        class_weights: Float64Array,
        fold: Indices | None,
        curvature: Curvature,
        column_scales: Float64Array | None,
        threads: WorkerThreads,
        dtype: torch.dtype,
    ) -> None:
        """Take the rows of all problems.

        Args:
            targets: (rows,) int64, the classes.
            class_weights: (folds + 1, classes), those of a problem by the fold that it leaves out.
            fold: (rows,) int64, the fold of each row; None if no problem leaves one out.
            column_scales: (folds + 1, width), what a problem's columns are multiplied with; None for nothing.
            dtype: Of all but the products with features, and of sums over rows, which are in float64.
        """
        self._rows, self._targets, self._threads, self._dtype = rows, torch.from_numpy(targets), threads, dtype
        self._class_weights = torch.from_numpy(class_weights).to(dtype)
        self._fold = None if fold is None else torch.from_numpy(fold)
        self._curvature, self._classes = curvature, class_weights.shape[1]
        self._scales = None if column_scales is None else torch.from_numpy(column_scales).to(dtype)

    def begin(self, fold: int, l2: float, bias: Float64Array) -> Problem:
        """A problem at weights of 0 and these biases."""
        point = torch.zeros(self._classes, self._rows.width + 1, dtype=self._dtype)
        point[:, -1] = torch.from_numpy(bias)
        return Problem(fold=fold, l2=l2, point=point, gradient=torch.zeros_like(point))

    def evaluate(self, problems: Sequence[Problem], held_out: HeldOut | None = None) -> None:
        """Find value, gradient and class covariance of problems where they stand."""
        results = self._pass(problems, [problem.point for problem in problems], held_out)
        for problem, (value, gradient, covariance) in zip(problems, results, strict=True):
            problem.value, problem.gradient, problem.covariance = value, gradient, covariance
            problem.passes += 1

    def solve(
        self,
        problems: Sequence[Problem],
        limits: Limits,
        *,
        held_out: Callable[[Sequence[Problem]], HeldOut] | None = None,
        on_pass: Callable[[], None] = lambda: None,
    ) -> None:
        """Move problems that were evaluated to their optima, together. A problem that is solved leaves the batch. The
        logits that ``held_out`` got last of a problem are those where it stands in the end."""
        active = list(problems)
        self._choose_steps(active)
        while active:
            points = [problem.point.add(_some(problem.step), alpha=problem.length) for problem in active]
            results = self._pass(active, points, None if held_out is None else held_out(active))
            on_pass()
            moved = []
            for problem, point, (value, gradient, covariance) in zip(active, points, results, strict=True):
                problem.passes += 1
                # Near the optimum, rounding hides the gain, but not the slope (Hager and Zhang, 2005, equation 4.2).
                slope = _dot(gradient, _some(problem.step))
                level = value <= problem.value * (1 + limits.rounding) and slope <= -0.9998 * problem.slope
                if level or value <= problem.value + 1e-4 * problem.length * problem.slope:
                    _move(problem, point, value, gradient, covariance, limits.history)
                    moved.append(problem)
                    continue
                # The minimum of the parabola through what is known, within limits.
                bend = 2 * (value - problem.value - problem.slope * problem.length)
                best = -problem.slope * problem.length**2 / bend if math.isfinite(bend) else 0.0
                problem.length = min(max(best, 0.1 * problem.length), 0.5 * problem.length)
                if -problem.slope * problem.length < limits.rounding * max(problem.value, limits.floor):
                    if problem.pairs:  # they may describe another region of the objective: begin anew without them
                        problem.pairs = []
                        moved.append(problem)
                        continue
                    problem.converged = problem.gap <= limits.loose_tolerance * max(problem.value, limits.floor)
                    problem.reason = "no step lowers the objective any more, for rounding"
                    problem.reason += "" if problem.converged else "; a larger l2 is better conditioned"
            self._choose_steps(moved)
            for problem in active:
                if problem.reason:
                    continue
                solved = problem.gap <= limits.tolerance * max(problem.value, limits.floor)
                if solved and problem.length == 1:
                    problem.reason = f"the gain to be had is below {limits.tolerance:g} of the objective"
                    problem.converged = True
                elif problem.passes >= limits.passes:
                    problem.reason = f"{problem.passes} passes are over; a larger l2 converges sooner"
            active = [problem for problem in active if not problem.reason]
        refused = [problem for problem in problems if problem.length < 1]
        if held_out is not None and refused:  # the last logits are those of a step that was not taken
            self._pass(refused, [problem.point for problem in refused], held_out(refused))

    def _choose_steps(self, problems: Sequence[Problem]) -> None:
        """Choose each problem's next step: minus L-BFGS's inverse Hessian times the gradient."""
        if not problems:
            return
        directions, factors = [], []
        for problem in problems:
            direction, each = problem.gradient.clone(), []
            for step, change, inverse in reversed(problem.pairs):
                each.append(inverse * _dot(step, direction))
                direction.sub_(change, alpha=each[-1])
            directions.append(direction)
            factors.append(each[::-1])
        self._invert(problems, directions)
        for problem, direction, each in zip(problems, directions, factors, strict=True):
            for (step, change, inverse), factor in zip(problem.pairs, each, strict=True):
                direction.add_(step, alpha=factor - inverse * _dot(change, direction))
            problem.step, problem.length = direction.neg_(), 1.0
            problem.slope = _dot(problem.gradient, direction)
            problem.gap = abs(problem.slope) / 2

    def _invert(self, problems: Sequence[Problem], gradients: Sequence[Tensor]) -> None:
        """Multiply gradients, where they lie, by an approximate inverse of each Hessian, from class covariance and
        curvature."""
        # To add the same vector to all classes changes no probability. Rounding must not push points that way.
        for gradient in gradients:
            gradient.sub_(gradient.mean(0))
        if self._classes <= _FULL_CLASSES:
            covariance = torch.stack([_some(problem.covariance) for problem in problems])
            values, vectors = torch.linalg.eigh(covariance)
            vectors = vectors.to(self._dtype)
            along = torch.bmm(vectors.mT, torch.stack(list(gradients)))
            l2 = torch.tensor([problem.l2 for problem in problems], dtype=self._dtype)
            self._divide(along, values, values.amax(1), l2)
            for gradient, result in zip(gradients, torch.bmm(vectors, along), strict=True):
                gradient.copy_(result)
        else:
            for problem, gradient in zip(problems, gradients, strict=True):
                values = _some(problem.covariance)[None]
                most, l2 = values.amax(1), torch.tensor([problem.l2], dtype=self._dtype)
                for part, of_part in zip(
                    torch.split(gradient[None], _BLOCK_CLASSES, 1), torch.split(values, _BLOCK_CLASSES, 1), strict=True
                ):
                    self._divide(part, of_part, most, l2)
        for gradient in gradients:
            gradient.sub_(gradient.mean(0))

    def _divide(self, along: Tensor, values: Tensor, most: Tensor, l2: Tensor) -> None:
        """Multiply (problems, classes, width + 1), where they lie, by the inverse of values x curvature + l2.

        Values are (problems, classes); ``most``, (problems,), is the largest of each problem.
        """
        values = values.clamp(min=0)
        # No bias is moved in a direction without curvature.
        least = 100 * torch.finfo(self._dtype).eps * most.clamp(min=1e-300)[:, None]
        along[:, :, -1] /= torch.where(values > least, values, torch.inf).to(self._dtype)
        along[:, :, :-1] = self._curvature.invert(along[:, :, :-1], values.to(self._dtype), l2)

    def _pass(
        self, problems: Sequence[Problem], points: Sequence[Tensor], held_out: HeldOut | None
    ) -> list[tuple[float, Tensor, Tensor]]:
        """Each problem's value, gradient, and sum of class covariances."""
        count, classes, width = len(problems), self._classes, self._rows.width
        point = points[0][None] if count == 1 else torch.stack(list(points))  # (problems, classes, width + 1)
        folds = torch.tensor([problem.fold for problem in problems])
        scales = None if self._scales is None else self._scales[folds][:, None, :]
        weight = point[:, :, :-1] if scales is None else point[:, :, :-1] * scales
        # The weights sum to 0 over the classes, as `_invert` makes steps; the residuals, as probabilities sum to 1. So
        # the products of the last class with the features follow from those of the others.
        multiplied = classes - 1 if classes <= _FULL_CLASSES else classes
        if multiplied < classes:
            weight = (weight - weight.mean(1, keepdim=True))[:, :-1]
        weight, bias = weight.to(torch.float32).reshape(count * multiplied, width), point[:, :, -1:]
        class_weights = self._class_weights[folds]  # (problems, classes)

        def residuals_of(span: slice, features: Tensor) -> tuple[Tensor, list[Tensor]]:
            """What, times the features, is the weights' gradient, (problems x multiplied, rows) float32; all else."""
            labels, rows = self._targets[span], len(features)
            row_weights = class_weights[:, labels]  # (problems, rows)
            if self._fold is not None:
                row_weights = row_weights * (self._fold[span] != folds[:, None])
            product = _product(weight, features).view(count, multiplied, rows)
            logits = _all_classes(product, classes, self._dtype).add_(bias)
            if held_out is not None:
                held_out(span, logits)
            logits -= logits.amax(1, keepdim=True)
            label_logits = logits.gather(1, labels.expand(count, 1, rows))[:, 0]
            total = logits.exp_().sum(1)
            values = ((total.log() - label_logits) * row_weights).sum(1, dtype=torch.float64)
            probabilities = logits.div_(total[:, None])
            residuals = probabilities * row_weights[:, None]
            if classes <= _FULL_CLASSES:
                covariance = torch.diag_embed(residuals.sum(2)) - torch.bmm(residuals, probabilities.mT)
            else:
                covariance = (residuals - residuals * probabilities).sum(2)
            residuals.scatter_add_(1, labels.expand(count, 1, rows), -row_weights[:, None])
            multipliers = residuals[:, :multiplied].to(torch.float32).reshape(-1, rows)
            return multipliers, [values, residuals.sum(2), covariance]

        most = min(_SPAN_FEATURES // width, _SPAN_LOGITS // (count * classes))
        span_rows = min(max(most, _LEAST_SPAN), _MOST_SPAN)
        if count * classes * width > WIDE:
            gradients, values, biases, covariances = self._sum_by_classes(residuals_of, count * multiplied, span_rows)
        else:

            def work(span: slice, features: Tensor) -> list[Tensor]:
                residuals, others = residuals_of(span, features)
                return [torch.mm(residuals, features), *others]

            sums = sum_over_rows(self._rows, work, self._threads, span_rows=span_rows)
            gradients, values, biases, covariances = (torch.from_numpy(each) for each in sums)
        whole = torch.cat(
            [
                _all_classes(gradients.view(count, multiplied, width), classes, self._dtype),
                biases[:, :, None].to(self._dtype),
            ],
            2,
        )
        if scales is not None:
            whole[:, :, :-1] *= scales
        for number, problem in enumerate(problems):
            weights = point[number, :, :-1]
            whole[number, :, :-1].add_(weights, alpha=problem.l2)
            parts = torch.split(weights, _BLOCK_CLASSES)
            values[number] += problem.l2 / 2 * sum(float(part.to(torch.float64).square().sum()) for part in parts)
        return list(zip(values.tolist(), whole.unbind(0), covariances.unbind(0), strict=True))

    def _sum_by_classes(
        self, residuals_of: Callable[[slice, Tensor], tuple[Tensor, list[Tensor]]], columns: int, span_rows: int
    ) -> list[Tensor]:
        """The sums over all rows, in float64: the gradient (columns, width), then the others of ``residuals_of``.

        Some spans at a time get their residuals, each in a thread. Then each thread adds the gradient of some columns.
        """
        gradient = torch.zeros(columns, self._rows.width, dtype=torch.float64)
        totals: list[Tensor] = []

        def begin(first: int) -> tuple[Tensor, Tensor, list[Tensor]]:
            span = slice(first, min(first + span_rows, len(self._rows)))
            features = torch.from_numpy(self._rows.take(span))
            return features, *residuals_of(span, features)

        starts = range(0, len(self._rows), span_rows)
        for place in range(0, len(starts), SHARES):
            spans = list(self._threads.map(begin, starts[place : place + SHARES]))

            def add(first: int, spans: Sequence[tuple[Tensor, Tensor, list[Tensor]]] = spans) -> None:
                block = slice(first, first + _BLOCK_CLASSES)
                (features, residuals, _), *others = spans
                total = torch.mm(residuals[block], features)
                for features, residuals, _ in others:
                    total.addmm_(residuals[block], features)
                gradient[block] += total

            list(self._threads.map(add, range(0, columns, _BLOCK_CLASSES)))
            for _, _, terms in spans:
                wide = [term.to(torch.float64) for term in terms]
                totals = [total.add_(term) for total, term in zip(totals, wide, strict=True)] if totals else wide
        return [gradient, *totals]


def _product(weight: Tensor, features: Tensor) -> Tensor:
    """Multiply (columns, width) with (rows, width): (columns, rows)."""
    few = len(weight) < _FEW_COLUMNS
    return torch.mm(features, weight.T).T if few else torch.mm(weight, features.T)


def _all_classes(some: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Cast (problems, classes, n); if the last class is not there, add what makes the sum over the classes 0."""
    if some.shape[1] == classes:
        return some.to(dtype)
    every = torch.empty(len(some), classes, some.shape[2], dtype=dtype)
    every[:, :-1] = some
    torch.sum(every[:, :-1], 1, out=every[:, -1]).neg_()
    return every


def _move(problem: Problem, point: Tensor, value: float, gradient: Tensor, covariance: Tensor, history: int) -> None:
    """Take a step, and keep it as a pair if the objective bends along it. The old step and gradient become the pair.

    A step from weights of 0 makes none: probabilities are the same for all rows there, and the curvature is another.
    """
    begins = not bool(problem.point[:, :-1].any())
    step = torch.sub(point, problem.point, out=_some(problem.step))
    change = torch.sub(gradient, problem.gradient, out=problem.gradient)
    product = _dot(step, change)
    if not begins and product > 1e-10 * math.sqrt(_dot(step, step) * _dot(change, change)):
        problem.pairs = [*problem.pairs, (step, change, 1 / product)][-history:]
    problem.point, problem.value, problem.gradient, problem.covariance = point, value, gradient, covariance
    problem.steps += 1


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))


def _some(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
