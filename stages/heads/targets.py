"""Kinds of target. Choosing, training and testing a head know a kind of target only by the methods of `Target`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ...cache.errors import SettingsError
from ..settings import Calibration, Decision, Metric, Scaling, Task, TrainSettings, parse_floors
from ..settings import Solver as SolverName
from ..threads import WorkerThreads
from ..types import Float64Array, Indices
from .calibration import LogitMap, fit_label_map, fit_map, fit_ordinal_map
from .dataset import Dataset, ScaledDataset, Scaler, fit_scaler, fits_in_memory, scaled
from .head import Parameters
from .logistic import ConvergenceReport, LogisticSolver
from .logistic_path import LogisticPath, PathPoint
from .losses import BinaryCrossEntropy, CrossEntropy, CumulativeLogits, Loss, SquaredError, normal_log_loss
from .metrics import RESAMPLES, evaluate, mean_average_precision, plain_scores
from .multi_label_metrics import (
    average_precision,
    evaluate_labels,
    f1_of_labels,
    label_losses,
    predict_labels,
    probabilities,
)
from .number_metrics import evaluate_numbers, order_metrics, spearman
from .one_vs_rest import OneVsRestSolver, held_out_logits
from .ordinal import OrdinalSolver, class_log_probabilities
from .ridge import RidgeSolver
from .scratch import map_rows
from .stacked import class_weights
from .text_bootstrap import ratio
from .thresholds import NEVER, best_threshold, find_thresholds

TargetValues = npt.NDArray[Any]
"""What rows are trained on, and what is predicted: `Values`; of labels bool."""
Scores = npt.NDArray[np.floating[Any]]
"""A head's outputs, (rows, outputs) float32: logits, or of numbers the predictions. Calibrated ones are float64."""
_PATH_TOLERANCE = 1e-5
"""The gap to the optimum, as a share of the objective, at which a head is good enough to compare penalties."""

_MAX_NUMBERS = 1 << 22
"""Most numbers in double precision at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folds:
    """Which rows a path leaves out together."""

    fold: Indices  # (rows,) int64: 1 to ``folds``, or 0 for rows that no head leaves out
    folds: int
    groups: Indices  # (rows,) int64, equal for copies of a text


class Path(Protocol):
    """The problems of some folds, to be solved for many penalties: `LogisticPath`."""

    def solve(self, penalties: Sequence[float], on_step: Callable[[], None]) -> Iterator[PathPoint]: ...


class Solver(Protocol):
    """One problem, to be solved to its optimum for one penalty after the other: `LogisticSolver`."""

    def solve(self, l2: float, on_iteration: Callable[[int], None]) -> tuple[Parameters, ConvergenceReport]: ...


class Target(Protocol):
    """A kind of target."""

    @property
    def task(self) -> Task:
        """The task that these targets are of."""

    @property
    def names(self) -> tuple[str, ...]:
        """The labels; none of numbers."""

    @property
    def has_several(self) -> bool:
        """Whether a row may have several labels, so that values are (rows, labels)."""

    @property
    def unfit(self) -> tuple[str, ...]:
        """Settings of a head that have no meaning for it."""

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """The ways in which its scores can be calibrated."""

    @property
    def outputs(self) -> int:
        """Number of a head's outputs."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that a head can be chosen by."""

    @property
    def more_penalties(self) -> int:
        """How many larger penalties than those of classes are worth trying."""

    def leaves_one_out(self, settings: TrainSettings) -> bool:
        """Whether `path` scores each row by the head of all rows with other texts, not of all other folds."""

    def path(
        self, train: Dataset, folds: Folds, *, scaling: Scaling, settings: TrainSettings, threads: WorkerThreads
    ) -> Path:
        """The problems of all folds; see `LogisticPath`."""

    def solver(self, train: Dataset, *, scaling: Scaling, settings: TrainSettings, threads: WorkerThreads) -> Solver:
        """The problem of all rows. The parameters that it finds read rows of `scaled`."""

    def loss(self, settings: Sequence[TrainSettings], values: TargetValues, device: torch.device) -> Loss:
        """What heads with these settings minimise by AdamW, for training rows with these values."""

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
        thresholds: Any = None,
    ) -> dict[str, Any]:
        """All metrics of these rows, with intervals; ``groups`` (rows,) int64 are equal for copies of a text, and
        ``thresholds`` (outputs,), or (rows, outputs) where each row has its own, those of `thresholds`."""

    def fit_map(self, method: Calibration, scores: Scores, values: TargetValues) -> LogitMap:
        """What calibrates scores, fitted to rows that were not trained on."""

    def thresholds(
        self,
        values: TargetValues,
        scores: Float64Array,
        weights: Float64Array,
        settings: TrainSettings,
        *,
        required: bool,
    ) -> Float64Array | None:
        """The probability from which on each label is predicted, (outputs,) float64, chosen by rows that were not
        trained on; None where nothing is to be chosen.

        ``scores`` are calibrated, and divided by the temperature. ``weights`` say how much a row counts: (rows,), or
        (rows, labels) where a row may have several.

        Raises:
            SettingsError: ``required`` is True, and no threshold of one of two classes has the least precision.
        """


@dataclasses.dataclass(frozen=True)
class _LabelTarget:
    """What kinds of target that have names share."""

    names: tuple[str, ...]

    @property
    def has_several(self) -> bool:
        return False

    @property
    def unfit(self) -> tuple[str, ...]:
        return ()

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        return (Calibration.NONE, Calibration.TEMPERATURE, Calibration.PER_CLASS, Calibration.AUTO)

    @property
    def outputs(self) -> int:
        return len(self.names)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (Metric.LOG_LOSS, Metric.ACCURACY, Metric.MACRO_F1, Metric.AVERAGE_PRECISION)

    @property
    def more_penalties(self) -> int:
        return 4

    def leaves_one_out(self, settings: TrainSettings) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class ClassTarget(_LabelTarget):
    """One class for each text."""

    @property
    def task(self) -> Task:
        return Task.CLASSES

    @property
    def more_penalties(self) -> int:
        return 0

    def path(
        self, train: Dataset, folds: Folds, *, scaling: Scaling, settings: TrainSettings, threads: WorkerThreads
    ) -> Path:
        return LogisticPath(
            train,
            scaling=scaling,
            fold=folds.fold,
            folds=folds.folds,
            classes=self.outputs,
            class_weight=settings.class_weight,
            memory=settings.memory,
            threads=threads,
        )

    def solver(self, train: Dataset, *, scaling: Scaling, settings: TrainSettings, threads: WorkerThreads) -> Solver:
        exact: dict[str, Any] = {"solver": SolverName.EXACT, "standardize": scaling is Scaling.STANDARDIZED}
        settings = dataclasses.replace(settings, **exact)
        return LogisticSolver(scaled(train, scaling), classes=self.outputs, settings=settings, threads=threads)

    def loss(self, settings: Sequence[TrainSettings], values: TargetValues, device: torch.device) -> Loss:
        return CrossEntropy(settings, np.bincount(values, minlength=self.outputs), device)

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
        thresholds: Any = None,
    ) -> dict[str, Any]:
        log_probabilities = log_softmax(scores, temperature)
        return evaluate(values, log_probabilities, groups, names=self.names, resamples=RESAMPLES, thresholds=thresholds)

    def fit_map(self, method: Calibration, scores: Scores, values: TargetValues) -> LogitMap:
        return fit_map(method, scores, values)

    def thresholds(
        self,
        values: TargetValues,
        scores: Float64Array,
        weights: Float64Array,
        settings: TrainSettings,
        *,
        required: bool,
    ) -> Float64Array | None:
        if not settings.decides:
            return None
        label, floor = self.names[1], None
        if settings.precision_floor is not None:
            ((name, floor),) = parse_floors(settings.precision_floor).items()
            label = str(name)
        number = self.names.index(label)
        probability = np.exp(log_softmax(scores)[:, number])
        options: dict[str, Any] = {"metric": settings.decide_by, "floor": floor, "both": True}
        threshold = best_threshold(probability, values == number, weights, **options)
        if threshold == NEVER and required:
            raise SettingsError(
                f"no threshold gives {label!r} a precision of {floor:g} on the {len(values):,} validation rows; "
                "lower `precision_floor`, or add rows"
            )
        threshold = min(threshold, 1 - 1e-12)
        return np.array([1 - threshold, threshold] if number else [threshold, 1 - threshold])


@dataclasses.dataclass(frozen=True)
class MultiLabelTarget(_LabelTarget):
    """Any number of labels for each text: values are (rows, labels) uint8, and scores a logit for each label."""

    @property
    def task(self) -> Task:
        return Task.MULTI_LABEL

    @property
    def has_several(self) -> bool:
        return True

    def path(
        self, train: Dataset, folds: Folds, *, scaling: Scaling, settings: TrainSettings, threads: WorkerThreads
    ) -> Path:
        rows, _ = _center(train, scaling, settings.memory)
        options: dict[str, Any] = {"class_weight": settings.class_weight, "memory": settings.memory}
        options |= {"fold": folds.fold, "folds": folds.folds}
        return _FoldPath(rows, folds.fold, OneVsRestSolver(rows, train.targets, threads=threads, **options))

    def solver(self, train: Dataset, *, scaling: Scaling, settings: TrainSettings, threads: WorkerThreads) -> Solver:
        rows, scaler = _center(train, scaling, settings.memory)
        options: dict[str, Any] = {"class_weight": settings.class_weight, "memory": settings.memory}
        return _WholeSolver(OneVsRestSolver(rows, train.targets, threads=threads, **options), scaler)

    def loss(self, settings: Sequence[TrainSettings], values: TargetValues, device: torch.device) -> Loss:
        return BinaryCrossEntropy(settings, values.sum(axis=0, dtype=np.int64), len(values), device)

    def predict(self, scores: Scores) -> TargetValues:
        return predict_labels(scores)

    def measure(self, metric: Metric, values: TargetValues, scores: Scores) -> float:
        if metric is Metric.LOG_LOSS:
            return float(label_losses(values, scores).mean())
        true, said = values.astype(bool), predict_labels(scores)
        if metric is Metric.ACCURACY:
            return float((true == said).all(axis=1).mean())
        if metric is Metric.MACRO_F1:
            return float(f1_of_labels(true, said).mean())
        precisions = [average_precision(true[:, label], scores[:, label]) for label in range(self.outputs)]
        return float(np.mean([precision for precision in precisions if precision is not None] or [0.0]))

    def evaluate(
        self,
        values: TargetValues,
        scores: Scores,
        groups: Indices,
        *,
        temperature: float = 1.0,
        thresholds: Float64Array | None = None,
    ) -> dict[str, Any]:
        logits = scores.astype(np.float64) / temperature
        return evaluate_labels(values, logits, groups, names=self.names, thresholds=thresholds)

    def fit_map(self, method: Calibration, scores: Scores, values: TargetValues) -> LogitMap:
        return fit_label_map(method, scores, values)

    def thresholds(
        self,
        values: TargetValues,
        scores: Float64Array,
        weights: Float64Array,
        settings: TrainSettings,
        *,
        required: bool,
    ) -> Float64Array | None:
        if settings.decide_by is Decision.NONE:
            return None
        given = {} if settings.precision_floor is None else parse_floors(settings.precision_floor)
        floors = {number: given[key] for number, name in enumerate(self.names) for key in (name, None) if key in given}
        metric = Decision.ACCURACY if settings.decide_by is Decision.ACCURACY else Decision.MACRO_F1
        return find_thresholds(values, probabilities(scores), weights, metric=metric, floors=floors)


@dataclasses.dataclass(frozen=True)
class NumberTarget:
    """A number for each text: values are (rows,) float64, and the only score is the predicted number.

    Its log loss is that of a normal distribution around each prediction, with the mean squared error as its variance.
    """

    @property
    def task(self) -> Task:
        return Task.REGRESSION

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    @property
    def has_several(self) -> bool:
        return False

    @property
    def unfit(self) -> tuple[str, ...]:
        return ("class_weight", "label_smoothing", "calibrate", "prior", "decide_by", "precision_floor")

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        return (Calibration.NONE,)

    @property
    def outputs(self) -> int:
        return 1

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (Metric.LOG_LOSS, Metric.R2, Metric.MAE, Metric.RMSE, Metric.SPEARMAN)

    @property
    def more_penalties(self) -> int:
        return 8  # where features explain a thousandth of the variance, the best is among them

    def leaves_one_out(self, settings: TrainSettings) -> bool:
        return settings.folds == 0  # a formula

    def path(
        self, train: Dataset, folds: Folds, *, scaling: Scaling, settings: TrainSettings, threads: WorkerThreads
    ) -> Path:
        rows, _ = _center(train, scaling, settings.memory)
        solver = RidgeSolver(rows, train.targets, folds.groups, threads=threads)
        return _RidgePath(solver, None if self.leaves_one_out(settings) else folds.fold)

    def solver(self, train: Dataset, *, scaling: Scaling, settings: TrainSettings, threads: WorkerThreads) -> Solver:
        rows, scaler = _center(train, scaling, settings.memory)
        return _WholeSolver(RidgeSolver(rows, train.targets, np.arange(len(rows)), threads=threads), scaler)

    def loss(self, settings: Sequence[TrainSettings], values: TargetValues, device: torch.device) -> Loss:
        return SquaredError(len(settings), values)

    def predict(self, scores: Scores) -> TargetValues:
        return scores[:, 0].astype(np.float64)

    def measure(self, metric: Metric, values: TargetValues, scores: Scores) -> float:
        predicted = self.predict(scores)
        errors = predicted - values
        variance = float((errors**2).mean())
        match metric:
            case Metric.R2:
                return float(ratio(values.var() - variance, values.var(), float(not errors.any())))
            case Metric.MAE:
                return float(np.abs(errors).mean())
            case Metric.RMSE:
                return math.sqrt(variance)
            case Metric.SPEARMAN:
                return spearman(values, predicted) or 0.0  # None where all numbers of one side are equal
        return normal_log_loss(variance)

    def evaluate(
        self,
        values: TargetValues,
        scores: Scores,
        groups: Indices,
        *,
        temperature: float = 1.0,
        thresholds: Float64Array | None = None,
    ) -> dict[str, Any]:
        return evaluate_numbers(values, self.predict(scores), groups)

    def fit_map(self, method: Calibration, scores: Scores, values: TargetValues) -> LogitMap:
        return LogitMap()

    def thresholds(
        self,
        values: TargetValues,
        scores: Float64Array,
        weights: Float64Array,
        settings: TrainSettings,
        *,
        required: bool,
    ) -> Float64Array | None:
        return None


@dataclasses.dataclass(frozen=True)
class OrdinalTarget(_LabelTarget):
    """One of several classes that have an order: values are (rows,) int64, and scores the logits of a row being above
    each class but the last."""

    @property
    def task(self) -> Task:
        return Task.ORDINAL

    @property
    def unfit(self) -> tuple[str, ...]:
        return ("label_smoothing", "prior", "decide_by", "precision_floor")

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        return (Calibration.NONE, Calibration.TEMPERATURE, Calibration.AUTO)

    @property
    def outputs(self) -> int:
        return len(self.names) - 1

    def path(
        self, train: Dataset, folds: Folds, *, scaling: Scaling, settings: TrainSettings, threads: WorkerThreads
    ) -> Path:
        rows, _ = _center(train, scaling, settings.memory)
        options: dict[str, Any] = {"class_weights": self._class_weights(train, settings)}
        options |= {"fold": folds.fold, "folds": folds.folds}
        return _FoldPath(rows, folds.fold, OrdinalSolver(rows, train.targets, threads=threads, **options))

    def solver(self, train: Dataset, *, scaling: Scaling, settings: TrainSettings, threads: WorkerThreads) -> Solver:
        rows, scaler = _center(train, scaling, settings.memory)
        weights = self._class_weights(train, settings)
        return _WholeSolver(OrdinalSolver(rows, train.targets, class_weights=weights, threads=threads), scaler)

    def loss(self, settings: Sequence[TrainSettings], values: TargetValues, device: torch.device) -> Loss:
        return CumulativeLogits(settings, np.bincount(values, minlength=len(self.names)), device)

    def _class_weights(self, train: Dataset, settings: TrainSettings) -> Float64Array:
        return class_weights(settings.class_weight, np.bincount(train.targets, minlength=len(self.names)))

    def predict(self, scores: Scores) -> TargetValues:
        predicted: Indices = class_log_probabilities(scores).argmax(axis=1)
        return predicted

    def measure(self, metric: Metric, values: TargetValues, scores: Scores) -> float:
        log_probabilities = class_log_probabilities(scores)
        if metric is Metric.AVERAGE_PRECISION:
            return mean_average_precision(values, log_probabilities)
        if metric is Metric.LOG_LOSS:
            return float(-log_probabilities[np.arange(len(values)), values].mean())
        return plain_scores(values, log_probabilities.argmax(axis=1), len(self.names))[metric]

    def evaluate(
        self,
        values: TargetValues,
        scores: Scores,
        groups: Indices,
        *,
        temperature: float = 1.0,
        thresholds: Float64Array | None = None,
    ) -> dict[str, Any]:
        log_probabilities = class_log_probabilities(scores / np.float32(temperature))
        found = evaluate(values, log_probabilities, groups, names=self.names, resamples=RESAMPLES)
        order = order_metrics(values, log_probabilities.argmax(axis=1), groups, classes=len(self.names))
        return {**found, **order}

    def fit_map(self, method: Calibration, scores: Scores, values: TargetValues) -> LogitMap:
        return fit_ordinal_map(method, scores, values)

    def thresholds(
        self,
        values: TargetValues,
        scores: Float64Array,
        weights: Float64Array,
        settings: TrainSettings,
        *,
        required: bool,
    ) -> Float64Array | None:
        return None


def _center(train: Dataset, scaling: Scaling, memory: int | None) -> tuple[ScaledDataset, Scaler]:
    """The rows of a dataset as a solver reads them, centered; and what turns its parameters into those of `scaled`."""
    rows = scaled(train, scaling)
    scaler = fit_scaler(rows, center=True, standardize=scaling is Scaling.STANDARDIZED)
    return ScaledDataset(rows, scaler, in_memory=fits_in_memory((rows,), memory)), scaler


class _FoldPath:
    """The problems of all folds together."""

    def __init__(self, rows: ScaledDataset, fold: Indices, solver: OneVsRestSolver | OrdinalSolver) -> None:
        self._rows, self._fold, self._solver = rows, fold, solver

    def solve(self, penalties: Sequence[float], on_step: Callable[[], None]) -> Iterator[PathPoint]:
        for l2 in sorted(penalties, reverse=True):
            weights, biases, report = self._solver.solve(
                l2, tolerance=_PATH_TOLERANCE, on_iteration=lambda iteration: on_step()
            )
            yield PathPoint(l2, held_out_logits(self._rows, self._fold, weights, biases), report.converged)


class _WholeSolver:
    """The problem of all rows, for raw features."""

    def __init__(self, solver: OneVsRestSolver | OrdinalSolver | RidgeSolver, scaler: Scaler) -> None:
        self._solver, self._scaler = solver, scaler

    def solve(self, l2: float, on_iteration: Callable[[int], None]) -> tuple[Parameters, ConvergenceReport]:
        weights, biases, report = self._solver.solve(l2, on_iteration=on_iteration)
        parameters = {"weight": weights[0].astype(np.float32), "bias": biases[0].astype(np.float32)}
        return self._scaler.fold_into(parameters), report


class _RidgePath:
    """The same for ridge regression, which solves for all penalties at once; without folds it leaves out one text."""

    def __init__(self, solver: RidgeSolver, fold: Indices | None) -> None:
        self._solver, self._fold = solver, fold

    def solve(self, penalties: Sequence[float], on_step: Callable[[], None]) -> Iterator[PathPoint]:
        ordered, solver = sorted(penalties, reverse=True), self._solver
        predictions = (
            solver.leave_one_out(ordered) if self._fold is None else solver.leave_folds_out(ordered, self._fold)
        )
        for l2, row in zip(ordered, predictions, strict=True):
            on_step()
            yield PathPoint(l2, row[:, None].astype(np.float32), True)


def log_softmax(logits: Scores, temperature: float = 1.0) -> Float64Array:
    """Logarithms of probabilities, (rows, classes) float64, from logits that are divided by the temperature."""

    def work(rows: Scores) -> Float64Array:
        shifted = rows.astype(np.float64) / temperature
        shifted -= shifted.max(axis=1, keepdims=True)
        result: Float64Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return result

    return map_rows(work, logits)


def target_of(task: Task, names: tuple[str, ...]) -> Target:
    """The kind of target that a task has."""
    if task is Task.MULTI_LABEL:
        return MultiLabelTarget(names)
    if task is Task.ORDINAL:
        return OrdinalTarget(names)
    return NumberTarget() if task is Task.REGRESSION else ClassTarget(names)
