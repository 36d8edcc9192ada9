"""The search for the best head that cached features hold: arrays in, a fitted head and the reasons for it out.

Folds of the training rows choose the feature, the scaling of its vectors, and the penalty. Then the head is trained on
all of these rows. No row is set aside.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from ..progress import Note, Report, Step, silent
from ..settings import Metric, Scaling, TrainSettings
from ..threads import WorkerThreads, open_threads
from ..types import Indices
from .dataset import Dataset, Splits, scaled
from .fit import Fit
from .logistic_path import PathPoint
from .scratch import empty, take
from .targets import Folds, Scores, Target

_LARGER = 10**0.26
"""A penalty a quarter of a decade above the best one is chosen if its log loss is within one standard error (Breiman et
al., Classification and Regression Trees, 1984): a head at the lowest log loss is not right most often. No more than one
step: `bench/thirty_lines.py news` is 0.7 points worse without it, and `vader` 0.4 points worse with two. Both say so by
their test rows; the bench's other tables had no say."""
_TIE = 1e-6
"""A mean must be better by this share to be better: the solver's own error is no reason to choose."""
_PATIENCE = 3
"""A path ends after so many penalties in a row that are worse than its best."""
_WEIGHED_OUT = 1.0
"""The penalty where there is no row to choose by, for vectors of length 1: scikit-learn's default."""
LARGEST, _SMALLEST = 4, -16
"""The penalties to try, in quarters of a decade from the mean squared length of the centered vectors, to which a
penalty is relative. `bench/head_defaults.py` prints where the best ones are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to make a head, and how it does on rows that it was not trained on."""

    feature: str
    scaling: Scaling
    l2: float
    mean: float  # of the metric, over all rows that are in a fold, or over the validation rows
    spread: float | None  # standard deviation over the folds; None without folds
    lowest: float | None  # of the folds
    highest: float | None
    converged: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """What was chosen, and among what."""

    metric: Metric
    folds: int  # 0 if validation rows chose, or if no class has two texts to choose by
    leave_one_out: bool  # each row was scored by the head of all rows with other texts, not of all other folds
    rows: int  # that chose
    candidates: tuple[Candidate, ...]  # in the order in which they were tried; empty without rows to choose by
    choice: Candidate | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validated:
    """The rows that chose a head, with the scores of the chosen settings' heads that were not trained on them."""

    dataset: Dataset
    groups: Indices  # (rows,) int64, equal for copies of a text
    fold: Indices | None  # (rows,) int64, each one's fold from 1; None if the rows are in no fold
    scores: Scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The head of the choice, trained on all training rows."""

    feature: str
    scaling: Scaling
    fit: Fit
    search: Search
    validated: Validated


def search(
    splits: Mapping[str, Splits],
    *,
    target: Target,
    settings: TrainSettings,
    of_length_one: Collection[str] = (),
    report: Report = silent,
) -> Found:
    """Find the best head by the folds of the splits, or by their validation rows if they have no folds.

    Args:
        splits: The same rows with each feature that there is to choose from. The first of those with the best mean is
            chosen, and of its penalties the largest that is as good as its best: see `_LARGER`.
        of_length_one: Features whose vectors have the length 1 already.
    """
    started = time.perf_counter()
    with open_threads() as threads:
        candidates: list[Candidate] = []
        chosen: list[tuple[Candidate, Scores]] = []  # of the best way: what is as good as its best, and this last
        ways = [
            (feature, scaling)
            for feature in splits
            for scaling in Scaling
            if scaling is not Scaling.NORMALIZED or feature not in of_length_one
        ]
        for number, (feature, scaling) in enumerate(ways):
            step = functools.partial(report, Step("searching", number, len(ways), "paths"))
            path = _Path(splits[feature], scaling, target=target, settings=settings, threads=threads, on_step=step)
            ours: list[tuple[Candidate, Scores]] = []
            for candidate, scores in path.candidates(feature):
                candidates.append(candidate)
                if not ours or _better(candidate.mean, ours[-1][0].mean, settings.metric):
                    kept = [each for each in ours if _as_good(each[0], candidate, settings.metric, path.folds)]
                    ours = [*kept, (candidate, scores)]
            if ours and (not chosen or _better(ours[-1][0].mean, chosen[-1][0].mean, settings.metric)):
                chosen = ours
        best = chosen[0] if chosen else None
        feature, scaling, l2 = next(iter(splits)), Scaling.NORMALIZED, _WEIGHED_OUT
        if feature in of_length_one:
            scaling = Scaling.NONE
        if best:
            feature, scaling, l2 = best[0].feature, best[0].scaling, best[0].l2
        else:
            report(Note(f"no label has two texts to choose a head by: {feature}, {scaling}, with the penalty {l2:g}"))
        solver = target.solver(splits[feature].train, scaling=scaling, settings=settings, threads=threads)
        parameters, convergence = solver.solve(l2, lambda done: report(Step("solving", done, 0, "iterations")))
    if not convergence.converged:
        report(Note(f"the exact solver did not converge: {convergence.reason}"))
    rows = _Rows(splits[feature])
    return Found(
        feature=feature,
        scaling=scaling,
        fit=Fit(parameters=parameters, convergence=convergence, seconds=time.perf_counter() - started),
        search=Search(
            metric=settings.metric,
            folds=rows.folds,
            leave_one_out=bool(rows.folds) and target.leaves_one_out(settings),
            rows=len(rows.dataset),
            candidates=tuple(candidates),
            choice=best[0] if best else None,
        ),
        validated=Validated(
            dataset=rows.dataset,
            groups=rows.groups,
            fold=rows.fold if rows.folds else None,
            scores=best[1] if best else np.zeros((0, target.outputs), np.float32),
        ),
    )


class _Rows:
    """The rows that choose."""

    def __init__(self, splits: Splits) -> None:
        if splits.fold is None:
            self.dataset, self.groups = splits.validation, splits.validation_groups
            self.held = np.arange(len(self.dataset))
            self.fold = np.zeros(len(self.dataset), np.int64)
        else:
            self.held = np.flatnonzero(splits.fold > 0)
            self.dataset = dataclasses.replace(splits.train, index=splits.train.index[self.held])
            self.fold, self.groups = splits.fold[self.held], splits.train_groups[self.held]
        self.values, self.folds = self.dataset.targets, int(self.fold.max(initial=0))


class _Path:
    """All penalties for one feature and scaling."""

    def __init__(
        self,
        splits: Splits,
        scaling: Scaling,
        *,
        target: Target,
        settings: TrainSettings,
        threads: WorkerThreads,
        on_step: Callable[[], None],
    ) -> None:
        self._splits, self._scaling, self._target, self._settings = splits, scaling, target, settings
        self._threads, self._on_step, self._rows = threads, on_step, _Rows(splits)
        self.folds = self._rows.folds

    def candidates(self, feature: str) -> Iterator[tuple[Candidate, Scores]]:
        """Yield each penalty's candidate and its scores on the rows that choose, from the largest penalty on."""
        rows, metric = self._rows, self._settings.metric
        if not len(rows.values):
            return
        best, worse = math.nan, 0
        for point in self._points():
            scores = take(point.logits, rows.held)
            mean = self._target.measure(metric, rows.values, scores)
            folds = [
                self._target.measure(metric, rows.values[members], take(scores, members))
                for members in (np.flatnonzero(rows.fold == fold) for fold in range(1, rows.folds + 1))
            ]
            yield (
                Candidate(
                    feature=feature,
                    scaling=self._scaling,
                    l2=point.l2,
                    mean=mean,
                    spread=float(np.std(folds, ddof=1)) if folds else None,
                    lowest=min(folds, default=None),
                    highest=max(folds, default=None),
                    converged=point.converged,
                ),
                scores,
            )
            if math.isnan(best) or _better(mean, best, metric):
                best, worse = mean, 0
            elif (worse := worse + 1) == _PATIENCE and metric is Metric.LOG_LOSS:
                return

    def _points(self) -> Iterator[PathPoint]:
        splits = self._splits
        penalties = _penalties(splits.train, self._scaling, LARGEST + self._target.more_penalties)
        if splits.fold is not None:
            path = self._target.path(
                splits.train,
                Folds(fold=splits.fold, folds=self._rows.folds, groups=splits.train_groups),
                scaling=self._scaling,
                settings=self._settings,
                threads=self._threads,
            )
            yield from path.solve(penalties, self._on_step)
            return
        solver = self._target.solver(
            splits.train, scaling=self._scaling, settings=self._settings, threads=self._threads
        )
        validation = scaled(splits.validation, self._scaling)
        for l2 in penalties:
            parameters, report = solver.solve(l2, lambda done: self._on_step())
            weight, bias = parameters["weight"].T, parameters["bias"]
            logits = empty((len(validation), len(bias)), np.float32, self._settings.memory)
            for span, chunk in validation.chunks_at():
                logits[span] = chunk @ weight + bias
            yield PathPoint(l2, logits, report.converged)


def _as_good(candidate: Candidate, best: Candidate, metric: Metric, folds: int) -> bool:
    """Whether a larger penalty is as good as the best."""
    if metric is not Metric.LOG_LOSS or best.spread is None:
        return not _better(best.mean, candidate.mean, metric)
    slack = best.spread / math.sqrt(folds)  # the standard error of the mean
    return candidate.mean - best.mean <= slack and candidate.l2 <= best.l2 * _LARGER


def _better(mean: float, best: float, metric: Metric) -> bool:
    gain = best - mean if metric.lower_is_better else mean - best
    return gain > _TIE * abs(best)


def _penalties(train: Dataset, scaling: Scaling, largest: int) -> list[float]:
    """The penalties to try, the largest first: quarters of a decade, from the mean squared length of vectors on."""
    length = float(train.width)
    if scaling is not Scaling.STANDARDIZED:
        rows = scaled(train, scaling)
        total, squares = np.zeros(train.width), 0.0
        for chunk in rows.chunks():
            total += chunk.sum(axis=0, dtype=np.float64)
            squares += float((chunk.astype(np.float64) ** 2).sum())
        length = squares / len(rows) - float(((total / len(rows)) ** 2).sum())
    middle = round(4 * math.log10(max(length, 1e-12)))
    return [10 ** ((middle + step) / 4) for step in range(largest, _SMALLEST - 1, -1)]
