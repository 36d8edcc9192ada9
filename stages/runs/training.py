"""Train one head and test it: what `train_head` does, and `sweep` for its winner."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ...cache.errors import SettingsError
from ...cache.label_kind import LabelKind
from ...cache.reader import Cache
from ..heads.adjustment import Adjusted, adjust, require_adjustable
from ..heads.dataset import Dataset, Splits
from ..heads.fit import Fit, fit_head
from ..heads.head import Head, outputs_of
from ..heads.search import Found, Validated, search
from ..heads.targets import Scores, Target, target_of
from ..progress import Note, Report, Step
from ..provenance import provenance
from ..settings import TASKS, Labels, Scaling, Solver, Task, TrainSettings
from ..threads import open_threads
from .predictions import PartPredictions
from .savings import passes_of_cached


def train_run(
    cache: Cache,
    splits: Mapping[str, Splits],
    settings: TrainSettings,
    *,
    labels: Labels | None,
    device: torch.device,
    report: Report,
) -> tuple[Head, dict[str, Any], list[PartPredictions]]:
    """Train a head on a cache's rows, calibrate it if asked to, and score it on validation and test rows.

    ``splits`` are the rows with each feature that there is to choose from (see `divide_features`). The validation rows
    of a search by folds are those of all folds, each scored by a head that was not trained on it. ``labels`` says where
    the labels come from, if they are not the cache's own; it is recorded.

    Returns:
        The head, the fields of its ``run.json`` apart from ``seconds``, and what it says of the validation and test
        rows.

    Raises:
        SettingsError: training diverged.
    """
    task, names = TASKS[cache.label_kind or LabelKind.CLASS], cache.label_names or ()
    target = target_of(task, names)
    _require_fit(settings, task, target, names)
    feature, scaling = next(iter(splits)), Scaling.STANDARDIZED if settings.standardize else Scaling.NONE
    found: Found | None = None
    if settings.solver is Solver.AUTO:
        lengths = of_length_one(cache, splits)
        found = search(splits, target=target, settings=settings, of_length_one=lengths, report=report)
        feature, scaling, fit = found.feature, found.scaling, found.fit
    settings, rows_of = dataclasses.replace(settings, feature=feature), splits[feature]
    train, validation, test = rows_of.train, rows_of.validation, rows_of.test
    if found is None and task is Task.CLASSES:
        fit = fit_head(train, validation, classes=len(names), settings=settings, device=device, report=report)
    elif found is None:
        fit = _solve(target, train, scaling, settings, report)
    head = Head(
        **fit.parameters,
        temperature=1.0,
        label_names=names,
        identity=cache.identity.narrowed(feature),
        dims=None,
        normalize=scaling is Scaling.NORMALIZED,
        task=task,
        thresholds=None,
    )
    validated = _validate(head, rows_of, settings, found)
    adjusted = _adjust(head, settings, validated, train, own=found is None or validated.fold is None)
    head, thresholds = adjusted.head, None
    if len(validated.dataset):
        fold = validated.groups if validated.fold is None else validated.fold
        thresholds = target.thresholds(validated.dataset.targets, validated.scores, fold, settings)
    if thresholds is not None:
        head = dataclasses.replace(head, thresholds=tuple(thresholds[0].tolist()))
    whole = dataclasses.replace(head, dims=train.dims)  # the splits' vectors are cut already
    rows = {"train": len(train), "validation": len(validation), "test": len(test), "shared": rows_of.shared_rows}
    passes = rows_of.texts_read(len(fit.history) or 1)  # a solver would encode once
    fields = {
        "settings": dataclasses.asdict(settings),
        "seed": settings.seed,
        "dims": None if train.dims is None else dataclasses.asdict(train.dims),
        "scaling": scaling,
        "task": task,
        "label_names": list(names),
        "identity": dataclasses.asdict(head.identity),
        "encoder": cache.record["encoder"],
        "cache": str(cache.path.resolve()),
        "rows": rows,
        "search": None if found is None else dataclasses.asdict(found.search),
        "temperature": head.temperature,
        **adjusted.record,
        "best_epoch": fit.best_epoch,
        "history": [dataclasses.asdict(epoch) for epoch in fit.history],
        "certificate": None if fit.convergence is None else dataclasses.asdict(fit.convergence),
        "epoch_seconds": fit.seconds / len(fit.history) if fit.history else None,
        "fit_seconds": fit.seconds,
        "encoder_passes": dataclasses.asdict(passes_of_cached(cache.record, passes)),
    }
    predictions: list[PartPredictions] = []
    metrics: dict[str, Any] = {"validation": None}
    # Validation rows with several labels are scored by thresholds that other folds chose.
    own, final = (head.thresholds, head.thresholds) if thresholds is None else (thresholds[1], thresholds[0])
    for part, dataset, fold_of, groups, scores, temperature, least in (
        ("validation", validated.dataset, validated.fold, validated.groups, adjusted.logits, 1.0, own),
        ("test", test, None, rows_of.test_groups, _scores(head, test), head.temperature, final),
    ):
        if len(dataset):
            said = outputs_of(task, scores.astype(np.float64) / temperature)
            by_row = None if thresholds is None else np.asarray(least, np.float64)
            predictions.append(
                PartPredictions(part=part, dataset=dataset, fold=fold_of, outputs=said, thresholds=by_row)
            )
            metrics[part] = target.evaluate(dataset.targets, scores, groups, temperature=temperature, thresholds=least)
    record = {
        **provenance(device, fields),
        "labels": None if labels is None else {**dataclasses.asdict(labels), "table": str(labels.table)},
        "metrics": metrics,
    }
    return whole, record, predictions


def of_length_one(cache: Cache, features: Iterable[str]) -> set[str]:
    """The features of a cache whose vectors have the length 1."""
    return {name for name in features if cache.identity.narrowed(name).normalized}


def _validate(head: Head, splits: Splits, settings: TrainSettings, found: Found | None) -> Validated:
    """The rows that chose a head, with the scores of heads that were not trained on them."""
    if found is not None:
        return found.validated
    return Validated(
        dataset=splits.validation,
        groups=splits.validation_groups,
        fold=np.full(len(splits.validation), settings.fold) if settings.folds else None,
        scores=_scores(head, splits.validation),
    )


def _adjust(head: Head, settings: TrainSettings, validated: Validated, train: Dataset, *, own: bool) -> Adjusted:
    """Adjust a head of classes as the settings say; see `adjust`."""
    if head.task is not Task.CLASSES:
        return Adjusted(head, validated.scores, {})
    return adjust(
        head,
        settings,
        scores=validated.scores,
        labels=validated.dataset.targets,
        fold=validated.groups if validated.fold is None or own else validated.fold,
        support=np.bincount(train.targets, minlength=len(head.label_names)),
        own=own,
    )


def _scores(head: Head, dataset: Dataset) -> Scores:
    """A head's outputs before they become probabilities."""
    parts = [head.logits(chunk) for chunk in dataset.chunks()]
    return np.concatenate(parts or [np.zeros((0, len(head.bias)), np.float32)])


def _require_fit(settings: TrainSettings, task: Task, target: Target, names: tuple[str, ...]) -> None:
    """Refuse settings that have no meaning for a task.

    Raises:
        SettingsError: one has none.
    """
    if settings.metric not in target.metrics:
        known = ", ".join(target.metrics)
        raise SettingsError(f"`metric={settings.metric}` does not go with `task={task}`; choose one of {known}")
    if task is not Task.CLASSES and settings.solver is Solver.SGD:
        raise SettingsError(f"`solver=sgd` trains heads of classes, and the task is {task}; leave it out")
    if task is Task.CLASSES:
        require_adjustable(settings, names)
    for name in ("calibrate", "prior", "decide_by", "precision_floor"):
        if task is not Task.CLASSES and getattr(settings, name) != getattr(TrainSettings, name):
            raise SettingsError(f"`{name}` is for probabilities of classes, and the task is {task}; leave it out")
    for name in ("thresholds", "least_precision"):
        if task is not Task.MULTI_LABEL and getattr(settings, name) != getattr(TrainSettings, name):
            raise SettingsError(f"`{name}` is for rows with several labels, and the task is {task}; leave it out")


def _solve(target: Target, train: Dataset, scaling: Scaling, settings: TrainSettings, report: Report) -> Fit:
    """Solve for one penalty."""
    with open_threads() as threads:
        solver = target.solver(train, scaling=scaling, settings=settings, threads=threads)
        parameters, convergence = solver.solve(settings.l2, lambda done: report(Step("solving", done, 0, "iterations")))
    if not convergence.converged:
        report(Note(f"the exact solver did not converge: {convergence.reason}"))
    return Fit(parameters=parameters, convergence=convergence, seconds=convergence.seconds)
