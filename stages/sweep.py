"""A sweep: train heads with many settings in few passes over the features, rank them, and test the winner."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache.errors import SettingsError
from ..cache.reader import Cache
from .heads.adjustment import require_fit
from .heads.fit import head_device
from .heads.ranking import HeadResult, rank, table_columns
from .progress import Action, Note, Outcome, Report, in_notebooks, without_repeats
from .provenance import provenance
from .runs.results import Sweep, open_sweep
from .runs.savings import passes_of_cached
from .runs.sweep_folder import SWEEP, SweepFolder, open_folder
from .runs.training import train_run
from .settings import AUTO, Labels, Solver, SweepSettings, TrainSettings, settings_from, takes
from .splits.divide import features_of, find_dims, open_caches, require_unchanged
from .sweeps.groups import Caches, Group, GroupTrainer, Progress, Train, contents_of, group_cells

if TYPE_CHECKING:
    from .ray_pool import RaySettings


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
    ray: str | None = None,
    workers: int | None = None,
    deadline: float | None = None,
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
        ray: Train the groups with Ray (extra ``ray``): on this machine (``local``), or on the cluster at this address.
        workers: How many processes of Ray train; None: one for each GPU, or for each machine without.
        deadline: Seconds that a group may take on Ray, before another worker gets it. None: ten times the median of the
            groups that are done, at least 10 minutes, and twice as long each time that it took too long.
        options: Settings by name, instead of ``settings``: those of `SweepSettings`, and of `TrainSettings`, of which
            the values in a list are compared: ``dropout=[0, 0.3]``.

    Returns:
        The sweep. It is a path too: of the folder with ``sweep.json``, which has the ranking, ``sweep.parquet``,
        which has every epoch of every head, and the run ``winner``.

    Raises:
        As `train_head`; SettingsError also if every setting diverged.
    """
    settings = SweepSettings.of(options) if settings is None else settings_from(SweepSettings, settings, options)
    out, on_ray = Path(out), None if ray is None else _ray_settings(ray, workers, deadline)
    with SWEEP.held(out, overwrite=overwrite, wait=wait, report=report):
        started, device = time.perf_counter(), head_device(settings.base.device)
        caches = open_caches(
            cache, validation=validation, test=test, settings=settings.base, labels=labels, report=report
        )
        settings, train_cache = _with_features(settings, caches[0]), caches[0]
        report_once = without_repeats(report)
        trainer = GroupTrainer(caches, device=device, report=report_once)
        for each in settings.settings():
            require_fit(each, trainer.target, ranked_by=settings.rank_by)
        width = 0
        for setting in settings.settings():
            for feature in features_of(train_cache, setting):
                find_dims(train_cache, dataclasses.replace(setting, feature=feature))  # refused before any is trained
                width = max(width, train_cache.features(feature).shape[1])
        groups = group_cells(settings.cells(), outputs=trainer.target.outputs, width=width)
        plan = _plan(settings, caches)

        train: Train = trainer.train_all
        if on_ray is not None:
            from .sweeps.on_ray import SweepWork, train_on_ray

            files: dict[str, Any] = {"validation": validation, "test": test, "labels": labels}
            work = SweepWork.of(cache, base=settings.base, contents=plan["caches"], **files)
            train = functools.partial(train_on_ray, on_ray, work, report=report_once)
        with open_folder(out, plan, overwrite=overwrite) as folder:
            results, kept = _train_groups(groups, folder, train=train, caches=caches, report=report)
            ranking = rank(settings, results)
            if ranking[0]["diverged"]:
                folder.discard()
                raise SettingsError("training diverged with every one of the settings; lower the learning rates")
            first = settings.settings()[ranking[0]["setting"]]
            winner = dataclasses.replace(first, folds=0, fold=1, seed=settings.seeds[0])
            winner_started, splits = time.perf_counter(), trainer.splits(winner, ranked=False)
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


def _ray_settings(address: str, workers: int | None, deadline: float | None) -> RaySettings:
    """Where the groups are trained on Ray."""
    from .ray_pool import RaySettings

    return RaySettings(address=address, workers=workers, deadline=deadline)


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


def _train_groups(
    groups: Sequence[Group],
    folder: SweepFolder,
    *,
    train: Train,
    caches: Caches,
    report: Report,
) -> tuple[list[HeadResult], int]:
    """Train the groups that are not finished yet.

    Returns:
        One result per head, in the order of the groups, and how many of them an earlier run had finished.
    """
    progress, found = Progress(groups, report), dict[Group, list[HeadResult]]()
    for group in groups:
        finished = folder.finished(group.number)
        cells = {(setting, head.seed, head.fold) for setting, head in group.cells}
        # Another release may have grouped the heads in another way.
        if finished is not None and {(head["setting"], head["seed"], head["fold"]) for head in finished} == cells:
            found[group] = finished
            progress.finished(group.cells)
    kept = sum(map(len, found.values()))
    with contextlib.closing(train([group for group in groups if group not in found], progress)) as trained:
        for group, finished in trained:
            require_unchanged(caches)
            folder.keep(group.number, finished)
            found[group] = finished
    results = [head for group in groups for head in found[group]]
    reports = [head["certificate"] for head in results if head["certificate"] is not None]
    if failed := [convergence for convergence in reports if not convergence["converged"]]:
        first = f"l2 {failed[0]['l2']:g}: {failed[0]['reason']}"
        report(Note(f"{len(failed):,} of {len(results):,} heads did not converge; the first, {first}"))
    if kept:
        report(Note(f"carried on: {kept:,} of {len(results):,} heads were finished already"))
    return results, kept


def _plan(settings: SweepSettings, caches: Caches) -> dict[str, Any]:
    """What must be the same if an interrupted sweep is to be continued: settings, features, texts and labels."""
    return {"settings": dataclasses.asdict(settings), "caches": contents_of(caches)}
