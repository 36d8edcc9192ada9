"""Groups of a sweep's heads: which heads train together, and their training."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import torch

from ...cache.hashing import digest
from ...cache.reader import Cache
from ..heads.dataset import Splits
from ..heads.fit import PER_HEAD, Epoch, Fit, Trainer, fit_heads, scores_of
from ..heads.ranking import HeadResult, measure_name
from ..heads.search import search
from ..heads.targets import Target
from ..progress import Report, Step, silent
from ..runs.training import new_head, of_length_one, target_of_cache
from ..settings import HeadKind, Metric, Scaling, Solver, TrainSettings
from ..splits.divide import divide_features
from ..threads import open_threads

_MAX_STACKED_OUTPUTS = 1536
"""Outputs (heads x classes) of one stacked product, at most. With more, the logits leave a core's cache, and stacking
gains nothing."""
_COPIES = 12
"""Tensors of the size of the parameters that training holds: the moments, the gradients of each share, the best
epochs."""
Cell = tuple[int, TrainSettings]
"""A head to train: the number of its settings, and the settings with its seed and fold."""
Caches = tuple[Cache, Cache | None, Cache | None]
"""The caches of training, validation and test rows. Without the others, the first holds all of them."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Heads that train together."""

    number: int  # from 0
    cells: tuple[Cell, ...]

    def __str__(self) -> str:
        return f"group {self.number + 1} of the heads"


def group_cells(cells: Sequence[Cell], *, outputs: int, width: int) -> list[Group]:
    """Group heads that can train together: equal in all settings but `PER_HEAD`, or for the exact solver but ``l2``.
    A search is a group of its own.

    Groups are limited in size by the memory bound, and by what a core's cache holds. For the exact solver, the largest
    penalty comes first.
    """
    groups: dict[TrainSettings, list[Cell]] = {}
    defaults = TrainSettings()
    for number, head in cells:
        shared = {Solver.EXACT: ("l2",), Solver.SGD: PER_HEAD, Solver.AUTO: ()}[head.solver]
        common = dataclasses.replace(head, **{name: getattr(defaults, name) for name in shared})
        groups.setdefault(common, []).append((number, head))
    result: list[Sequence[Cell]] = []
    for first, group in groups.items():
        if first.solver is not Solver.SGD:
            result.append(sorted(group, key=lambda cell: -cell[1].l2))
            continue
        linear = first.head is HeadKind.LINEAR
        parameters = outputs * width if linear else outputs * first.hidden + first.hidden * width
        most = max(1, _MAX_STACKED_OUTPUTS // (outputs if linear else first.hidden))
        if first.memory is not None:
            most = max(1, min(most, first.memory // 4 // (4 * _COPIES * parameters)))
        result += [group[start : start + most] for start in range(0, len(group), most)]
    return [Group(number, tuple(group)) for number, group in enumerate(result)]


def contents_of(caches: Caches) -> list[dict[str, Any] | None]:
    """What caches hold, to be compared: what their features mean, and hashes of all rows and labels."""
    return [
        None
        if cache is None or cache.labels is None
        else {
            "identity": dataclasses.asdict(cache.identity),
            "content": digest(cache.block_checksums, cache.labels).hex(),
            "label_names": cache.label_names,
        }
        for cache in caches
    ]


Train = Callable[[Sequence[Group], "Progress"], Generator[tuple[Group, list[HeadResult]], None, None]]
"""Trains groups; yields each with its results, as it is finished."""


class GroupTrainer:
    """Trains groups of heads on opened caches."""

    def __init__(self, caches: Caches, *, device: torch.device, report: Report) -> None:
        """``report`` receives notes about the rows."""
        self.target = target_of_cache(caches[0])
        self._caches, self._device, self._report = caches, device, report

    def splits(self, head: TrainSettings, *, ranked: bool = True) -> dict[str, Splits]:
        """The rows of a head, with each feature that it may read; without ``ranked``, validation rows only if needed.

        Raises:
            As `divide_features`.
        """
        return divide_features(
            *self._caches,
            settings=head,
            validated=ranked or head.needs_validation,
            ranked=ranked,
            report=self._report if head.fold == 1 else silent,
        )

    def train_all(
        self, groups: Sequence[Group], progress: Progress
    ) -> Generator[tuple[Group, list[HeadResult]], None, None]:
        """Train groups one after the other; yield each with its results, as it is finished."""
        yield from ((group, self.train(group, progress)) for group in groups)

    def train(self, group: Group, progress: Progress) -> list[HeadResult]:
        """Train a group of heads; return a result of each, in their order."""
        cache, first = self._caches[0], group.cells[0][1]
        by_feature = self.splits(first)
        if first.solver is Solver.SGD:
            ((feature, splits),) = by_feature.items()
            fits = fit_heads(
                splits.train,
                splits.validation,
                target=self.target,
                settings=[head for _, head in group.cells],
                device=self._device,
                on_epoch=functools.partial(progress.epoch, group),
            )
            solved: Iterable[_Solved] = (_Solved(fit, feature, Scaling.NONE) for fit in fits)
        else:
            solved = _solve_group(group.cells, by_feature, self.target, cache, progress)
        return [
            _result(cell, each, by_feature[each.feature], self.target, cache)
            for cell, each in zip(group.cells, solved, strict=True)
        ]


class Progress:
    """Reports how many heads and epochs are left. A head that stops early counts with all its epochs, and one that is
    solved for with one."""

    def __init__(self, groups: Sequence[Group], report: Report) -> None:
        cells = [head for group in groups for _, head in group.cells]
        self._report, self._heads, self._total = report, len(cells), sum(map(_epochs, cells))
        self._solved = all(head.solver is not Solver.SGD for head in cells)
        self._finished = self._done = 0

    def finished(self, cells: Sequence[Cell]) -> None:
        """Count heads that are finished."""
        self._finished += len(cells)
        self._done += sum(_epochs(head) for _, head in cells)

    def epoch(self, group: Group, trainer: Trainer) -> None:
        """Report an epoch of a group."""
        epochs = _epochs(group.cells[0][1])
        active = 0 if trainer.epoch == epochs else len(trainer.active)
        inactive = len(group.cells) - active
        self._step(self._finished + inactive, self._done + inactive * epochs + active * trainer.epoch)
        if not active:
            self.finished(group.cells)

    def solved(self, cell: Cell) -> None:
        """Report a head that was solved for."""
        self.finished([cell])
        self._step(self._finished, self._done)

    def state(self, workers: str) -> None:
        """Report the heads that are finished; ``workers`` says who is at the others."""
        self._step(self._finished, self._done, f", {workers}")

    def _step(self, finished: int, done: int, workers: str = "") -> None:
        unit, of = ("heads", "") if self._solved else ("epochs of heads", f" of {self._heads:,} heads")
        detail = f"{self._heads - finished:,}{of} left{workers}"
        self._report(Step("sweeping", done, self._total, unit, detail=detail))


def _epochs(head: TrainSettings) -> int:
    return head.epochs if head.solver is Solver.SGD else 1


@dataclasses.dataclass(frozen=True)
class _Solved:
    """A fitted head, and what it reads."""

    fit: Fit
    feature: str
    scaling: Scaling


def _solve_group(
    group: Sequence[Cell], splits: dict[str, Splits], target: Target, cache: Cache, progress: Progress
) -> Iterator[_Solved]:
    """Search for a head; or solve for a group's heads, each from the optimum of the one before. It runs on the CPU."""
    first = group[0][1]
    if first.solver is Solver.AUTO:
        (cell,) = group
        found = search(splits, target=target, settings=cell[1], of_length_one=of_length_one(cache, splits))
        yield _Solved(found.fit, found.feature, found.scaling)
        progress.solved(cell)
        return
    scaling = Scaling.STANDARDIZED if first.standardize else Scaling.NONE
    with open_threads() as threads:
        ((feature, rows),) = splits.items()
        solver = target.solver(rows.train, scaling=scaling, settings=first, threads=threads)
        for cell in group:
            parameters, convergence = solver.solve(cell[1].l2, lambda iteration: None)
            fit = Fit(parameters=parameters, convergence=convergence, seconds=convergence.seconds)
            yield _Solved(fit, feature, scaling)
            progress.solved(cell)


def _result(cell: Cell, solved: _Solved, rows: Splits, target: Target, cache: Cache) -> HeadResult:
    """What the sweep keeps of a fit. A head that was solved for has one epoch, 0."""
    (number, settings), fit = cell, solved.fit
    measures: dict[str, float] = {}
    if not fit.diverged:
        head = new_head(fit, cache, feature=solved.feature, scaling=solved.scaling)
        values, said = rows.validation.targets, scores_of(head, rows.validation)
        measures = {measure_name(metric): target.measure(metric, values, said) for metric in target.metrics}
    epochs = fit.history
    if fit.convergence is not None:
        train_loss = (fit.convergence.objective - fit.convergence.penalty) / len(rows.train)
        accuracy, f1 = (measures.get(measure_name(metric)) for metric in (Metric.ACCURACY, Metric.MACRO_F1))
        epochs = (Epoch(0, train_loss, measures[measure_name(Metric.LOG_LOSS)], accuracy, f1),)
    names = [field.name for field in dataclasses.fields(Epoch)]
    history: Any = {name: [getattr(epoch, name) for epoch in epochs] for name in names}
    return HeadResult(
        setting=number,
        seed=settings.seed,
        fold=settings.fold,
        diverged=fit.diverged,
        best_epoch=fit.best_epoch or 0,
        history=history,
        measures=measures,
        certificate=None if fit.convergence is None else dataclasses.asdict(fit.convergence),
    )
