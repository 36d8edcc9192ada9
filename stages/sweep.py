"""A sweep: train heads with many settings in few passes over the features, rank them, and test the winner."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..cache.errors import SettingsError
from ..cache.hashing import digest
from ..cache.reader import Cache
from .heads.adjustment import require_fit
from .heads.dataset import Splits
from .heads.fit import PER_HEAD, Epoch, Fit, Trainer, fit_heads, head_device, scores_of
from .heads.ranking import HeadResult, measure_name, rank, table_columns
from .heads.search import search
from .heads.targets import Target
from .progress import Action, Note, Outcome, Report, Step, in_notebooks, silent, without_repeats
from .provenance import provenance
from .runs.results import Sweep, open_sweep
from .runs.savings import passes_of_cached
from .runs.sweep_folder import SWEEP, SweepFolder, open_folder
from .runs.training import new_head, of_length_one, target_of_cache, train_run
from .settings import (
    AUTO,
    HeadKind,
    Labels,
    Metric,
    Scaling,
    Solver,
    SweepSettings,
    TrainSettings,
    settings_from,
    takes,
)
from .splits.divide import divide_features, features_of, find_dims, open_caches, require_unchanged
from .threads import open_threads

_MAX_STACKED_OUTPUTS = 1536
"""Outputs (heads x classes) of one stacked product, at most. With more, the logits leave a core's cache, and stacking
gains nothing."""
_COPIES = 12
"""Tensors of the size of the parameters that training holds: the moments, the gradients of each share, the best
epochs."""
Cell = tuple[int, TrainSettings]
"""A head to train: the number of its settings, and the settings with its seed and fold."""


@takes(SweepSettings, TrainSettings)
def sweep(
    cache: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: SweepSettings | None = None,
    *,
    test: str | os.PathLike[str] | None = None,
    validation: str | os.PathLike[str] | None = None,
    labels: Labels | None = None,
    overwrite: bool = False,
    wait: bool = False,
    report: Report = in_notebooks,
    **options: Any,
) -> Sweep:
    """Train a head for every setting, seed and fold; rank the settings; train the winner and test it once. The heads
    are of any kind of target.

    Heads that read the same rows in the same order train together. Each is the head that `train_head` would train with
    its settings. No test row is read before the winner is chosen. With folds, the winner is trained again with the
    first seed on the rows of all folds, except for a share of ``validation_fraction``, which chooses its epoch.

    A sweep that is interrupted keeps the groups of heads that are finished; the same call continues with the rest.

    Args:
        cache: The cache to train on.
        out: The folder to write.
        settings: See `SweepSettings`.
        test: A cache to test the winner on; without it, a share of the rows is held out.
        validation: A cache to rank by; without it, a share or folds of the rows.
        labels, overwrite, wait, report: As for `train_head`.
        options: Settings by name, instead of ``settings``: those of `SweepSettings`, and of `TrainSettings`, of which
            the values in a list are compared: ``dropout=[0, 0.3]``.

    Returns:
        The sweep. It is a path too: of the folder with ``sweep.json``, which has the ranking, ``sweep.parquet``,
        which has every epoch of every head, and the run ``winner``.

    Raises:
        As `train_head`; SettingsError also if every setting diverged.
    """
    settings = SweepSettings.of(options) if settings is None else settings_from(SweepSettings, settings, options)
    out = Path(out)
    with SWEEP.held(out, overwrite=overwrite, wait=wait, report=report):
        started, device = time.perf_counter(), head_device(settings.base.device)
        caches = open_caches(
            cache, validation=validation, test=test, settings=settings.base, labels=labels, report=report
        )
        settings, train_cache = _with_features(settings, caches[0]), caches[0]
        target = target_of_cache(train_cache)
        for each in settings.settings():
            require_fit(each, target, ranked_by=settings.rank_by)
        report_once = without_repeats(report)

        def splits_of(head: TrainSettings, *, ranked: bool = True) -> dict[str, Splits]:
            notes = report_once if head.fold == 1 else silent
            return divide_features(
                *caches, settings=head, validated=ranked or head.needs_validation, ranked=ranked, report=notes
            )

        width = 0
        for setting in settings.settings():
            for feature in features_of(train_cache, setting):
                find_dims(train_cache, dataclasses.replace(setting, feature=feature))  # refused before any is trained
                width = max(width, train_cache.features(feature).shape[1])
        groups = group_cells(settings.cells(), outputs=target.outputs, width=width)
        with open_folder(out, _plan(settings, caches), overwrite=overwrite) as folder:
            results, kept = _train_groups(
                groups, folder, target=target, splits_of=splits_of, caches=caches, device=device, report=report
            )
            ranking = rank(settings, results)
            if ranking[0]["diverged"]:
                folder.discard()
                raise SettingsError("training diverged with every one of the settings; lower the learning rates")
            first = settings.settings()[ranking[0]["setting"]]
            winner = dataclasses.replace(first, folds=0, fold=1, seed=settings.seeds[0])
            winner_started, splits = time.perf_counter(), splits_of(winner, ranked=False)
            head, run, predictions = train_run(train_cache, splits, winner, labels=labels, device=device, report=report)
            require_unchanged(caches)
            rows = next(iter(splits.values()))
            folder.write_winner(head, {**run, "seconds": time.perf_counter() - winner_started}, predictions)
            # In every epoch, a head reads as many rows as the winner trains on and is chosen by.
            epochs = sum(len(result["history"]["epoch"]) for result in results)
            passes = passes_of_cached(train_cache.record, rows.texts_read(epochs + (len(run["history"]) or 1)))
            diverged = sum(result["diverged"] for result in results)
            folder.write_table(table_columns(settings, results))
            fields = {
                "settings": dataclasses.asdict(settings),
                "heads": len(results),
                "diverged": diverged,
                "ranking": ranking,
                "winner": run["settings"],
                "kept_heads": kept,
                "seconds": time.perf_counter() - started,
                "encoder_passes": dataclasses.asdict(passes),
            }
            folder.finish(provenance(device, fields), overwrite=overwrite)
    counts = {"heads": len(results), "diverged": diverged, "kept_heads": kept, "epochs": epochs}
    report(Outcome(command="sweep", output=out, action=Action.MADE, counts=counts))
    return open_sweep(out)


def _with_features(settings: SweepSettings, cache: Cache) -> SweepSettings:
    """Return the settings with the names of features that the cache holds."""
    values = dict(settings.values)
    features = values.get("feature") or (settings.base.feature,)
    if Solver.AUTO in settings.solvers and AUTO in features:  # a search keeps the choice
        for head in settings.settings():
            features_of(cache, head)  # but another solver has none
        return settings
    named = tuple(map(cache.feature_name, features))
    if "feature" in values:
        values["feature"] = named
    base = dataclasses.replace(settings.base, feature=named[0])
    return dataclasses.replace(settings, base=base, values=values)


def group_cells(cells: Sequence[Cell], *, outputs: int, width: int) -> list[list[Cell]]:
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
    result: list[list[Cell]] = []
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
    return result


def _train_groups(
    groups: Sequence[Sequence[Cell]],
    folder: SweepFolder,
    *,
    target: Target,
    splits_of: Callable[[TrainSettings], dict[str, Splits]],
    caches: tuple[Cache, Cache | None, Cache | None],
    device: torch.device,
    report: Report,
) -> tuple[list[HeadResult], int]:
    """Train the groups that are not finished yet.

    Returns:
        One result per head, in the order of the groups, and how many of them an earlier run had finished.
    """
    results: list[HeadResult] = []
    cache, kept, progress = caches[0], 0, _Progress(groups, report)
    for number, group in enumerate(groups):
        finished = folder.finished(number)
        cells = {(setting, head.seed, head.fold) for setting, head in group}
        # Another release may have grouped the heads in another way.
        if finished is not None and {(head["setting"], head["seed"], head["fold"]) for head in finished} == cells:
            kept += len(finished)
            progress.kept(group)
        else:
            by_feature, head = splits_of(group[0][1]), group[0][1]
            if head.solver is Solver.SGD:
                ((feature, splits),) = by_feature.items()
                fits = fit_heads(
                    splits.train,
                    splits.validation,
                    target=target,
                    settings=[head for _, head in group],
                    device=device,
                    on_epoch=functools.partial(progress.epoch, group),
                )
                solved: Iterable[_Solved] = (_Solved(fit, feature, Scaling.NONE) for fit in fits)
            else:
                solved = _solve_group(group, by_feature, target, cache, progress)
            finished = [
                _result(cell, each, by_feature[each.feature], target, cache)
                for cell, each in zip(group, solved, strict=True)
            ]
            require_unchanged(caches)
            folder.keep(number, finished)
        results += finished
    reports = [head["certificate"] for head in results if head["certificate"] is not None]
    if failed := [convergence for convergence in reports if not convergence["converged"]]:
        first = f"l2 {failed[0]['l2']:g}: {failed[0]['reason']}"
        report(Note(f"{len(failed):,} of {len(results):,} heads did not converge; the first, {first}"))
    if kept:
        report(Note(f"carried on: {kept:,} of {len(results):,} heads were finished already"))
    return results, kept


class _Progress:
    """Reports how many heads and epochs are left. A head that stops early counts with all its epochs, and one that is
    solved for with one."""

    def __init__(self, groups: Sequence[Sequence[Cell]], report: Report) -> None:
        cells = [head for group in groups for _, head in group]
        self._report, self._heads, self._total = report, len(cells), sum(map(_epochs, cells))
        self._solved = all(head.solver is not Solver.SGD for head in cells)
        self._finished = self._done = 0

    def kept(self, group: Sequence[Cell]) -> None:
        """Count a group that an earlier run finished."""
        self._finished += len(group)
        self._done += sum(_epochs(head) for _, head in group)

    def epoch(self, group: Sequence[Cell], trainer: Trainer) -> None:
        """Report an epoch of a group."""
        epochs = _epochs(group[0][1])
        active = 0 if trainer.epoch == epochs else len(trainer.active)
        inactive = len(group) - active
        self._step(self._finished + inactive, self._done + inactive * epochs + active * trainer.epoch)
        if not active:
            self.kept(group)

    def solved(self, cell: Cell) -> None:
        """Report a head that was solved for."""
        self.kept([cell])
        self._step(self._finished, self._done)

    def _step(self, finished: int, done: int) -> None:
        unit, of = ("heads", "") if self._solved else ("epochs of heads", f" of {self._heads:,} heads")
        self._report(Step("sweeping", done, self._total, unit, detail=f"{self._heads - finished:,}{of} left"))


def _epochs(head: TrainSettings) -> int:
    return head.epochs if head.solver is Solver.SGD else 1


@dataclasses.dataclass(frozen=True)
class _Solved:
    """A fitted head, and what it reads."""

    fit: Fit
    feature: str
    scaling: Scaling


def _solve_group(
    group: Sequence[Cell], splits: dict[str, Splits], target: Target, cache: Cache, progress: _Progress
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


def _plan(settings: SweepSettings, caches: Sequence[Cache | None]) -> dict[str, Any]:
    """What must be the same if an interrupted sweep is to be continued: settings, features, texts and labels."""
    return {
        "settings": dataclasses.asdict(settings),
        "caches": [
            None
            if cache is None or cache.labels is None
            else {
                "identity": dataclasses.asdict(cache.identity),
                "content": digest(cache.block_checksums, cache.labels).hex(),
                "label_names": cache.label_names,
            }
            for cache in caches
        ],
    }
