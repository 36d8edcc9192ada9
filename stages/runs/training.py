"""Train one head, test it and write its run folder: what `train_head` does, and `sweep` for its winner."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from ...cache.reader import Cache
from ..heads.calibration import fit_temperature
from ..heads.dataset import Splits
from ..heads.fit import find_head, score
from ..heads.head import Head
from ..heads.trainer import Fit
from ..progress import Report
from ..provenance import provenance
from ..settings import Labels, TrainSettings
from .run import RUN, save_head
from .savings import passes_of_cached


def train_run(
    out: Path,
    cache: Cache,
    splits: Splits,
    settings: TrainSettings,
    *,
    labels: Labels | None,
    device: torch.device,
    overwrite: bool,
    started: float,
    report: Report,
) -> Fit:
    """Train a head, calibrate it if asked to, score it, and write its run folder.

    Args:
        out: The run folder to write. It appears when it is complete.
        cache: The training cache.
        splits: Its rows, divided.
        settings: See `TrainSettings`.
        labels: Where the labels come from, if they are not the cache's own.
        device: Where to train.
        overwrite: Replace the run at ``out``.
        started: When the command began, on `time.perf_counter`'s clock.
        report: Where progress and notes go.

    Raises:
        SettingsError: training diverged.
        OutputExistsError: ``out`` exists, and may not be replaced.
        StorageError: ``out`` cannot be written.
    """
    names = cache.label_names or ()
    fit = find_head(splits, classes=len(names), settings=settings, device=device, report=report)
    identity = cache.identity.narrowed(settings.feature)
    head = Head.from_parameters(fit.parameters, label_names=names, identity=identity)
    if settings.calibrate:
        logits = np.concatenate([head.logits(chunk) for chunk in splits.validation.chunks()])
        head = dataclasses.replace(head, temperature=fit_temperature(logits, splits.validation.targets))
    metrics = {
        "validation": score(head, splits.validation, splits.validation_groups),
        "test": score(head, splits.test, splits.test_groups),
    }
    passes = passes_of_cached(cache.record, splits.texts_read(fit.epochs))
    with RUN.new(out, overwrite=overwrite) as folder:
        save_head(head, folder)
        fields = provenance(
            device,
            {
                "settings": dataclasses.asdict(settings),
                "seed": settings.seed,
                "label_names": list(names),
                "identity": dataclasses.asdict(identity),
                "encoder": cache.record["encoder"],
                "cache": str(cache.path.resolve()),
                "rows": {
                    "train": len(splits.train),
                    "validation": len(splits.validation),
                    "test": len(splits.test),
                    "shared": splits.shared_rows,
                },
                "temperature": head.temperature,
                "best_epoch": fit.best_epoch,
                "history": [dataclasses.asdict(epoch) for epoch in fit.history],
                "certificate": None if fit.convergence is None else dataclasses.asdict(fit.convergence),
                "epoch_seconds": fit.seconds / len(fit.history) if fit.history else None,
                "fit_seconds": fit.seconds,
                "encoder_passes": dataclasses.asdict(passes),
            },
        )
        source = None if labels is None else {**dataclasses.asdict(labels), "table": str(labels.table)}
        seconds = time.perf_counter() - started
        RUN.write(folder, {**fields, "labels": source, "metrics": metrics, "seconds": seconds})
    return fit
