"""Train one head and test it: what `train_head` does, and `sweep` for its winner."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from ...cache.reader import Cache
from ..heads.calibration import fit_temperature
from ..heads.dataset import Splits
from ..heads.fit import fit_head, log_probabilities
from ..heads.head import Head
from ..heads.metrics import evaluate
from ..progress import Report
from ..provenance import provenance
from ..settings import Labels, Task, TrainSettings
from .predictions import PartPredictions
from .savings import passes_of_cached


def train_run(
    cache: Cache,
    splits: Splits,
    settings: TrainSettings,
    *,
    labels: Labels | None,
    device: torch.device,
    report: Report,
) -> tuple[Head, dict[str, Any], list[PartPredictions]]:
    """Train a head on a cache's rows, calibrate it if asked to, and score it on validation and test rows.

    ``labels`` says where the labels come from, if they are not the cache's own; it is recorded.

    Returns:
        The head, the fields of its ``run.json`` apart from ``seconds``, and what it says of the validation and test
        rows.

    Raises:
        SettingsError: training diverged.
    """
    names, identity = cache.label_names or (), cache.identity.narrowed(settings.feature)
    train, validation, test = splits.train, splits.validation, splits.test
    fit = fit_head(train, validation, classes=len(names), settings=settings, device=device, report=report)
    head = Head(
        **fit.parameters,
        temperature=1.0,
        label_names=names,
        identity=identity,
        dims=None,
        normalize=False,
        task=Task.CLASSES,
    )
    if settings.calibrate:
        logits = np.concatenate([head.logits(chunk) for chunk in validation.chunks()])
        temperature = float(np.float32(fit_temperature(logits, validation.targets)))  # as it is stored
        head = dataclasses.replace(head, temperature=temperature)
    whole = dataclasses.replace(head, dims=train.dims)  # the splits' vectors are cut already
    rows = {"train": len(train), "validation": len(validation), "test": len(test), "shared": splits.shared_rows}
    passes = passes_of_cached(cache.record, splits.texts_read(len(fit.history) or 1))  # a solver would encode once
    fields = {
        "settings": dataclasses.asdict(settings),
        "seed": settings.seed,
        "dims": None if train.dims is None else dataclasses.asdict(train.dims),
        "label_names": list(names),
        "identity": dataclasses.asdict(identity),
        "encoder": cache.record["encoder"],
        "cache": str(cache.path.resolve()),
        "rows": rows,
        "temperature": head.temperature,
        "best_epoch": fit.best_epoch,
        "history": [dataclasses.asdict(epoch) for epoch in fit.history],
        "certificate": None if fit.convergence is None else dataclasses.asdict(fit.convergence),
        "epoch_seconds": fit.seconds / len(fit.history) if fit.history else None,
        "fit_seconds": fit.seconds,
        "encoder_passes": dataclasses.asdict(passes),
    }
    predictions: list[PartPredictions] = []
    metrics: dict[str, Any] = {"validation": None}
    for part, dataset, groups in (
        ("validation", validation, splits.validation_groups),
        ("test", test, splits.test_groups),
    ):
        if len(dataset):
            found = log_probabilities(head, dataset)
            fold = np.full(len(dataset), settings.fold) if settings.folds and part == "validation" else None
            predictions.append(PartPredictions(part=part, dataset=dataset, fold=fold, log_probabilities=found))
            metrics[part] = evaluate(dataset.targets, found, groups, names=names)
    record = {
        **provenance(device, fields),
        "labels": None if labels is None else {**dataclasses.asdict(labels), "table": str(labels.table)},
        "metrics": metrics,
    }
    return whole, record, predictions
