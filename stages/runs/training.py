"""Train one head and test it: what `train_head` does, and `sweep` for its winner."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ...cache.label_kind import LabelKind
from ...cache.reader import Cache
from ..heads.adjustment import adjust, require_fit
from ..heads.dataset import Splits
from ..heads.fit import Fit, fit_head, scores_of
from ..heads.head import Head, outputs_of
from ..heads.scratch import map_rows
from ..heads.search import Found, Validated, search
from ..heads.targets import Scores, Target, target_of
from ..heads.thresholds import NEVER
from ..progress import Note, Report
from ..provenance import provenance
from ..settings import TASKS, Labels, Scaling, Solver, Task, TrainSettings
from ..types import Float64Array
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
    target, names = target_of_cache(cache), cache.label_names or ()
    require_fit(settings, target)
    feature, scaling = next(iter(splits)), Scaling.STANDARDIZED if settings.standardize else Scaling.NONE
    found: Found | None = None
    if settings.solver is Solver.AUTO:
        lengths = of_length_one(cache, splits)
        found = search(splits, target=target, settings=settings, of_length_one=lengths, report=report)
        feature, scaling, fit = found.feature, found.scaling, found.fit
    settings, rows_of = dataclasses.replace(settings, feature=feature), splits[feature]
    train, validation, test = rows_of.train, rows_of.validation, rows_of.test
    if found is None:
        fit = fit_head(train, validation, target=target, settings=settings, device=device, report=report)
    head = new_head(fit, cache, feature=feature, scaling=scaling)
    validated = _validate(head, rows_of, settings, found)
    adjusted = adjust(
        head,
        target,
        settings,
        scores=validated.scores,
        values=validated.dataset.targets,
        fold=validated.groups if found is None or validated.fold is None else validated.fold,
        trained=train.targets,
    )
    head = adjusted.head
    if never := [name for name, least in zip(names, head.thresholds or (), strict=False) if least == NEVER]:
        report(Note(f"no threshold has the least precision, so these labels are never predicted: {', '.join(never)}"))
    whole = dataclasses.replace(head, dims=train.dims)  # the splits' vectors are cut already
    rows = {"train": len(train), "validation": len(validation), "test": len(test), "shared": rows_of.shared_rows}
    passes = rows_of.texts_read(len(fit.history) or 1)  # a solver would encode once
    fields = {
        "settings": dataclasses.asdict(settings),
        "seed": settings.seed,
        "dims": None if train.dims is None else dataclasses.asdict(train.dims),
        "scaling": scaling,
        "task": target.task,
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
    final = None if head.thresholds is None else np.array(head.thresholds)
    for part, dataset, fold_of, groups, scores, temperature, least in (
        ("validation", validated.dataset, validated.fold, validated.groups, adjusted.scores, 1.0, adjusted.thresholds),
        ("test", test, None, rows_of.test_groups, scores_of(head, test, settings.memory), head.temperature, final),
    ):
        if len(dataset):
            said = map_rows(functools.partial(_said, target.task, temperature), scores)
            predictions.append(
                PartPredictions(part=part, dataset=dataset, fold=fold_of, outputs=said, thresholds=least)
            )
            metrics[part] = target.evaluate(dataset.targets, scores, groups, temperature=temperature, thresholds=least)
    record = {
        **provenance(device, fields),
        "labels": None if labels is None else {**dataclasses.asdict(labels), "table": str(labels.table)},
        "metrics": metrics,
    }
    return whole, record, predictions


def target_of_cache(cache: Cache) -> Target:
    """The kind of target that the labels of a cache are."""
    return target_of(TASKS[cache.label_kind or LabelKind.CLASS], cache.label_names or ())


def new_head(fit: Fit, cache: Cache, *, feature: str, scaling: Scaling) -> Head:
    """A fitted head, not yet adjusted, which reads the vectors of splits: they are cut already."""
    return Head(
        **fit.parameters,
        temperature=1.0,
        label_names=cache.label_names or (),
        identity=cache.identity.narrowed(feature),
        dims=None,
        normalize=scaling is Scaling.NORMALIZED,
        task=TASKS[cache.label_kind or LabelKind.CLASS],
        thresholds=None,
    )


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
        scores=scores_of(head, splits.validation, settings.memory),
    )


def _said(task: Task, temperature: float, scores: Scores) -> Float64Array:
    """What a head says whose outputs these are."""
    return outputs_of(task, scores.astype(np.float64) / temperature)
