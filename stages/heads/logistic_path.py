"""Logistic regression for many penalties and all folds: arrays in, out-of-fold logits out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..settings import ClassWeight, Scaling, Solver, TrainSettings
from ..threads import WorkerThreads
from ..types import Indices
from .dataset import Dataset, scaled
from .logistic import LogisticSolver


@dataclasses.dataclass(frozen=True)
class PathPoint:
    """The heads of all folds for one penalty."""

    l2: float
    logits: npt.NDArray[np.float32]  # (rows, classes): each row's by the head that it was not trained on; else 0
    converged: bool  # every fold's head is near enough to its optimum to compare penalties


class LogisticPath:
    """Solves for each of some folds, and any penalties."""

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
            memory: Most bytes to hold features in; the rest is read in every pass. None for no limit.
        """
        settings = TrainSettings(
            solver=Solver.EXACT,
            class_weight=class_weight,
            standardize=scaling is Scaling.STANDARDIZED,
            memory=None if memory is None else max(memory // folds, 1 << 24),
        )
        self._rows, self._fold, self._classes = scaled(train, scaling), fold, classes
        kept = [np.flatnonzero(fold != number) for number in range(1, folds + 1)]
        self._solvers = [
            LogisticSolver(
                dataclasses.replace(self._rows, index=train.index[rows]),
                classes=classes,
                settings=settings,
                threads=threads,
            )
            for rows in kept
        ]

    def solve(self, penalties: Sequence[float], on_step: Callable[[], None] = lambda: None) -> Iterator[PathPoint]:
        """Solve for each penalty, from the largest to the smallest. ``on_step`` is called now and then."""
        for l2 in sorted(penalties, reverse=True):
            logits = np.zeros((len(self._rows), self._classes), np.float32)
            converged = True
            for number, solver in enumerate(self._solvers, 1):
                parameters, report = solver.solve(l2)
                held_out = np.flatnonzero(self._fold == number)
                for start in range(0, len(held_out), 2048):
                    rows = held_out[start : start + 2048]
                    logits[rows] = self._rows.take(rows) @ parameters["weight"].T + parameters["bias"]
                converged &= report.converged
                on_step()
            yield PathPoint(l2, logits, converged)
