"""Kinds of target. Choosing, training and testing a head know a kind of target only by the methods of `Target`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...cache.errors import SettingsError
from ..settings import Metric, Scaling, Task, TrainSettings
from ..settings import Solver as SolverName
from ..threads import WorkerThreads
from ..types import Float64Array, Indices
from .dataset import Dataset, scaled
from .head import Parameters
from .logistic import ConvergenceReport, LogisticSolver
from .logistic_path import LogisticPath, PathPoint
from .metrics import RESAMPLES, evaluate, mean_average_precision, plain_scores

TargetValues = npt.NDArray[Any]
"""What rows are trained on: of classes (rows,) int64."""
Scores = npt.NDArray[np.float32]
"""A head's outputs, (rows, outputs) float32: of classes logits."""

_MAX_NUMBERS = 1 << 22
"""Most numbers in double precision at a time."""


class Path(Protocol):
    """The problems of some folds, to be solved for many penalties: `LogisticPath`."""

    def solve(self, penalties: Sequence[float], on_step: Callable[[], None]) -> Iterator[PathPoint]: ...


class Solver(Protocol):
    """One problem, to be solved to its optimum for one penalty after the other: `LogisticSolver`."""

    def solve(self, l2: float, on_iteration: Callable[[int], None]) -> tuple[Parameters, ConvergenceReport]: ...


class Target(Protocol):
    """A kind of target."""

    @property
    def outputs(self) -> int:
        """Number of a head's outputs."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that a head can be chosen by."""

    def strata(self, values: TargetValues) -> Indices:
        """The stratum of each row, (rows,) int64 from 0: folds have equal shares of each."""

    def path(
        self,
        train: Dataset,
        *,
        scaling: Scaling,
        fold: Indices,
        folds: int,
        settings: TrainSettings,
        threads: WorkerThreads,
    ) -> Path:
        """The problems of all folds; see `LogisticPath`."""

    def solver(self, train: Dataset, *, scaling: Scaling, settings: TrainSettings, threads: WorkerThreads) -> Solver:
        """The problem of all rows. The parameters that it finds read rows of `scaled`."""

    def predict(self, scores: Scores) -> TargetValues:
        """The predictions that these scores say, as the values of rows."""

    def measure(self, metric: Metric, values: TargetValues, scores: Scores) -> float:
        """One of the metrics of these rows."""

    def evaluate(
        self,
        values: TargetValues,
        scores: Scores,
        groups: Indices,
        *,
        temperature: float = 1.0,
        thresholds: tuple[float, ...] | None = None,
    ) -> dict[str, Any]:
        """All metrics of these rows, with intervals; ``groups`` (rows,) int64 are equal for copies of a text."""


@dataclasses.dataclass(frozen=True)
class ClassTarget:
    """One class for each text."""

    names: tuple[str, ...]

    @property
    def outputs(self) -> int:
        return len(self.names)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(Metric)

    def strata(self, values: TargetValues) -> Indices:
        return values

    def path(
        self,
        train: Dataset,
        *,
        scaling: Scaling,
        fold: Indices,
        folds: int,
        settings: TrainSettings,
        threads: WorkerThreads,
    ) -> Path:
        return LogisticPath(
            train,
            scaling=scaling,
            fold=fold,
            folds=folds,
            classes=self.outputs,
            class_weight=settings.class_weight,
            memory=settings.memory,
            threads=threads,
        )

    def solver(self, train: Dataset, *, scaling: Scaling, settings: TrainSettings, threads: WorkerThreads) -> Solver:
        exact: dict[str, Any] = {"solver": SolverName.EXACT, "standardize": scaling is Scaling.STANDARDIZED}
        settings = dataclasses.replace(settings, **exact)
        return LogisticSolver(scaled(train, scaling), classes=self.outputs, settings=settings, threads=threads)

    def predict(self, scores: Scores) -> TargetValues:
        predicted: Indices = scores.argmax(axis=1)
        return predicted

    def measure(self, metric: Metric, values: TargetValues, scores: Scores) -> float:
        if metric is Metric.AVERAGE_PRECISION:
            return mean_average_precision(values, log_softmax(scores))
        if metric is Metric.LOG_LOSS:
            step = max(_MAX_NUMBERS // self.outputs, 1)
            spans = [slice(start, start + step) for start in range(0, len(values), step)]
            return -sum(
                float(np.take_along_axis(log_softmax(scores[span]), values[span, None], 1).sum()) for span in spans
            ) / len(values)
        return plain_scores(values, self.predict(scores), self.outputs)[metric]

    def evaluate(
        self,
        values: TargetValues,
        scores: Scores,
        groups: Indices,
        *,
        temperature: float = 1.0,
        thresholds: tuple[float, ...] | None = None,
    ) -> dict[str, Any]:
        log_probabilities = log_softmax(scores, temperature)
        return evaluate(values, log_probabilities, groups, names=self.names, resamples=RESAMPLES, thresholds=thresholds)


def log_softmax(logits: Scores, temperature: float = 1.0) -> Float64Array:
    """Logarithms of probabilities, (rows, classes) float64, from logits that are divided by the temperature."""
    shifted = logits.astype(np.float64) / temperature
    shifted -= shifted.max(axis=1, keepdims=True)
    result: Float64Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def target_of(task: Task, names: tuple[str, ...]) -> Target:
    """Return the kind of target that a task has.

    Raises:
        SettingsError: no head can be trained for the task.
    """
    if task is Task.CLASSES:
        return ClassTarget(names)
    raise SettingsError(f"no head is trained for `task={task}` yet")
