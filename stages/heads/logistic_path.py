"""Logistic regression for many penalties and all folds: arrays in, out-of-fold logits out.

All rows are read once a pass, for a batch of problems: the folds of some neighbouring penalties. A row that a problem
leaves out has the weight 0 there, and its logits are the out-of-fold logits. A penalty's problems start where those of
the last penalty ended, with what L-BFGS has learned there of the Hessian.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ..settings import ClassWeight, Scaling
from ..threads import WorkerThreads
from ..types import Float64Array, Indices
from .dataset import Dataset, ScaledDataset, column_scales, fits_in_memory, scaled
from .logistic import choose_scaler, history_within
from .logistic_batch import WIDE, Curvature, HeldOut, Limits, LogisticBatch, Problem
from .scratch import empty, in_file
from .spectrum import sum_over_rows
from .stacked import class_weights

_Item = TypeVar("_Item")
_LIMITS = Limits(tolerance=1e-6, rounding=1e-7, loose_tolerance=1e-4, passes=200, history=10)
_LEAST_LOSS = 1e-4
"""A mean loss below this is as good as none. Float32 has no digits for a gap that is small beside it."""
_BLOCK_RATIO = 4.0
"""Penalties that are solved together differ at most by this factor, so that the last ones' optimum is a good start."""
_BLOCK_COLUMNS = 512  # columns of a matrix product, at most, unless a single penalty has more


@dataclasses.dataclass(frozen=True)
class PathPoint:
    """The heads of all folds for one penalty."""

    l2: float
    logits: npt.NDArray[np.float32]
    """(rows, classes): each row's by the head that it was not trained on, or else 0; in a temporary file if they are
    too large for memory."""
    converged: bool  # every fold's head is near enough to its optimum to compare penalties


class LogisticPath:
    """Solves for each of some folds, and any penalties, to about 1e-6 of the objective."""

    def __init__(
        self,
        train: Dataset,
        *,
        scaling: Scaling,
        fold: Indices,
        folds: int,
        classes: int,
        class_weight: ClassWeight,
        memory: int | None,
        threads: WorkerThreads,
    ) -> None:
        """Prepare the folds' problems.

        Args:
            train: The rows, as the cache holds them.
            fold: (rows of ``train``,) int64: 1 to ``folds``, or 0 for rows that every head is trained on. The head of
                a fold is trained on all rows that are not in it.
            memory: Most bytes to take. Features that do not fit are read in every pass; heads that wait and logits
                that do not fit lie in temporary files. None for no limit.
        """
        train = scaled(train, scaling)
        scaler = choose_scaler(train, standardize=scaling is Scaling.STANDARDIZED)
        rows = ScaledDataset(train, scaler, in_memory=fits_in_memory((train,), memory))
        self._rows, self._classes, self._memory = len(rows), classes, memory
        self._fold, self._folds = torch.from_numpy(fold), folds
        in_fold = np.bincount(fold * classes + rows.targets, minlength=(folds + 1) * classes).reshape(-1, classes)
        counts = in_fold.sum(0) - in_fold  # (folds + 1, classes), of the rows that each fold's problem has
        counts[0] = in_fold.sum(0)
        weights = np.stack([class_weights(class_weight, each) for each in counts])
        # A class that a problem does not have starts with next to no probability.
        self._biases = np.log(np.maximum(counts * weights, 1e-3) / (counts * weights).sum(1, keepdims=True))
        vector = 4 * classes * (train.width + 1)  # bytes
        history = history_within(memory, vector, _LIMITS.history)
        self._limits = dataclasses.replace(_LIMITS, history=history, floor=_LEAST_LOSS * len(rows))
        self._keeps_pairs = history == _LIMITS.history
        self._waiting = (2 + 2 * history * self._keeps_pairs) * vector  # bytes of a problem that is not being solved
        self._group = folds * _BLOCK_COLUMNS if memory is None else max(memory // 4 // ((2 * history + 20) * vector), 1)
        if classes * train.width > WIDE:  # the features are a small part of the work
            self._group = 1
        self._batch = LogisticBatch(
            rows,
            rows.targets,
            class_weights=weights,
            fold=fold,
            curvature=Curvature(rows, weights[0][rows.targets], threads, torch.float32),
            column_scales=_scales_of_folds(rows, fold, folds, scaler.center, scaler.scale, threads)
            if scaling is Scaling.STANDARDIZED
            else None,
            threads=threads,
            dtype=torch.float32,
        )

    def solve(self, penalties: Sequence[float], on_step: Callable[[], None] = lambda: None) -> Iterator[PathPoint]:
        """Solve for each penalty, from the largest to the smallest. ``on_step`` is called now and then."""
        last: list[Problem] = []
        for block in self._blocks(sorted(penalties, reverse=True)):
            if not last:
                last = [self._batch.begin(fold, block[0], self._biases[fold]) for fold in range(1, self._folds + 1)]
                for group in self._groups(last):
                    self._batch.evaluate(group)
            logits = empty((len(block), self._rows, self._classes), np.float32, self._memory)
            logits[:, self._fold.numpy() == 0] = 0
            problems: list[Problem] = []
            starts = [(place, problem) for place in range(len(block)) for problem in last]
            for some in self._groups(starts):
                group = [problem.with_penalty(block[place]) for place, problem in some]
                places = {id(problem): place for problem, (place, _) in zip(group, some, strict=True)}
                self._batch.solve(
                    group, self._limits, held_out=self._keeper(torch.from_numpy(logits), places), on_pass=on_step
                )
                for problem in group:
                    problem.forget(keep_pairs=self._keeps_pairs)
                    problem.point, problem.gradient = self._put_away(problem.point), self._put_away(problem.gradient)
                problems += group
            for place, l2 in enumerate(block):
                last = problems[place * self._folds : (place + 1) * self._folds]
                yield PathPoint(l2, logits[place], all(problem.converged for problem in last))

    def _groups(self, problems: Sequence[_Item]) -> list[Sequence[_Item]]:
        """Problems that fit into memory together."""
        return [problems[first : first + self._group] for first in range(0, len(problems), self._group)]

    def _put_away(self, tensor: torch.Tensor) -> torch.Tensor:
        """What waits until it is needed again: in a temporary file if that of all folds is too large for memory."""
        array = empty(tensor.shape, np.float32, None if self._memory is None else self._memory // self._folds)
        return torch.from_numpy(array).copy_(tensor) if in_file(array) else tensor

    def _blocks(self, penalties: Sequence[float]) -> Iterator[list[float]]:
        """Neighbouring penalties that are solved together."""
        most = max(_BLOCK_COLUMNS // (self._folds * self._classes), 1)
        if self._memory is not None:
            logits, waiting = 4 * self._rows * self._classes, self._folds * self._waiting
            most = max(min(most, self._memory // 8 // max(logits, waiting)), 1)
        block: list[float] = []
        for l2 in penalties:
            if block and (len(block) == most or l2 * _BLOCK_RATIO < block[0]):
                yield block
                block = []
            block.append(l2)
        if block:
            yield block

    def _keeper(self, logits: torch.Tensor, places: dict[int, int]) -> Callable[[Sequence[Problem]], HeldOut]:
        """Writes the rows that problems leave out to (penalties, rows, classes) logits, at each problem's place."""

        def keeper(problems: Sequence[Problem]) -> HeldOut:
            by_fold: dict[int, tuple[list[int], list[int]]] = {}
            for number, problem in enumerate(problems):
                numbers, rows_of = by_fold.setdefault(problem.fold, ([], []))
                numbers.append(number)
                rows_of.append(places[id(problem)])

            def keep(span: slice, found: torch.Tensor) -> None:
                folds = self._fold[span]
                for fold, (numbers, penalties) in by_fold.items():
                    rows = (folds == fold).nonzero()[:, 0]
                    if len(rows):
                        target = torch.tensor(penalties)[:, None], span.start + rows
                        logits[target] = found[numbers][:, :, rows].transpose(1, 2)

            return keep

        return keeper


def _scales_of_folds(
    rows: ScaledDataset,
    fold: Indices,
    folds: int,
    center: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    threads: WorkerThreads,
) -> Float64Array:
    """What standardized columns are multiplied with to be standardized by the rows of each fold's problem alone:
    (folds + 1, width)."""
    outside = torch.from_numpy((fold != np.arange(folds + 1)[:, None]) | (np.arange(folds + 1) == 0)[:, None])

    def work(span: slice, features: torch.Tensor) -> list[torch.Tensor]:
        mask = outside[:, span].to(torch.float32)
        return [torch.mm(mask, features), torch.mm(mask, features.square())]

    sums, squares = sum_over_rows(rows, work, threads)
    number = outside.sum(1).numpy()[:, None]
    means = sums / number
    variances = np.maximum(squares / number - means**2, 0)
    raw = [
        column_scales(center + mean / scale, variance / scale**2.0)
        for mean, variance in zip(means, variances, strict=True)
    ]
    return np.stack(raw) / scale
