"""Stage two: a linear head trains on cached features. No encoder runs, and none is loaded."""

from __future__ import annotations

import dataclasses
import datetime
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..cache.identity import Identity
from ..cache.reader import Cache, open_cache
from .devices import choose_device, machine
from .fit import Fit, Rows, fit_head
from .head import Head
from .metrics import evaluate
from .parts import Indices, Parts, divide
from .progress import Report, Step, silent
from .run import new_run, require_free, write_run
from .settings import TrainSettings


def train_head(
    cache: str | Path,
    out: str | Path,
    settings: TrainSettings | None = None,
    *,
    test: str | Path | None = None,
    validation: str | Path | None = None,
    overwrite: bool = False,
    report: Report = silent,
) -> Path:
    """Train a head on a cache's features, choose its epoch on validation rows, and test it once.

    Every row of every cache is held against its checksum first, so no head is trained on damaged features.

    Args:
        cache: The cache to train on.
        out: The run folder to write.
        settings: See `TrainSettings`.
        test: A cache to test on; without it, a share of the rows is held out.
        validation: A cache to choose the epoch by; without it, a share of the rows is held out.
        overwrite: Replace the run at ``out``.
        report: Where progress and notes go.

    Returns:
        The run folder: ``head.safetensors`` and ``run.json``.

    Raises:
        NotOursError: a cache is not one, or is unfinished.
        DamagedError: a cache's checksums do not hold.
        IdentityError: the caches are of different encoders or settings.
        TableError: the labels cannot be trained on.
        OutputExistsError: ``out`` is there already.
    """
    started = time.perf_counter()
    settings = settings or TrainSettings()
    out = Path(out)
    require_free(out, overwrite=overwrite)
    device = choose_device(settings.device)
    opened = {str(path): open_cache(path) for path in (cache, validation, test) if path is not None}
    for each in opened.values():
        _check(each, report)
    train_cache = opened[str(cache)]
    parts = divide(
        train_cache,
        validation=None if validation is None else opened[str(validation)],
        test=None if test is None else opened[str(test)],
        settings=settings,
        report=report,
    )
    names = train_cache.label_names or ()
    fit = fit_head(parts.train, parts.validation, classes=len(names), settings=settings, device=device, report=report)
    head = Head(
        weight=fit.weight,
        bias=fit.bias,
        label_names=names,
        identity=train_cache.identity.narrowed(settings.feature),
    )
    metrics = {
        "validation": _score(head, parts.validation, parts.validation_groups),
        "test": _score(head, parts.test, parts.test_groups),
    }
    with new_run(out, overwrite=overwrite) as folder:
        head.save(folder)
        write_run(folder, _fields(train_cache, head.identity, settings, parts, fit, metrics, device, started))
    return out


def _check(cache: Cache, report: Report) -> None:
    cache.check(lambda block: report(Step("checking", block + 1, cache.layout.blocks, "blocks")))


def _score(head: Head, rows: Rows, groups: Indices) -> dict[str, Any]:
    predicted = head.predict(rows.features[rows.index])
    return evaluate(rows.labels[rows.index], predicted, groups, names=head.label_names)


def _fields(
    cache: Cache,
    identity: Identity,
    settings: TrainSettings,
    parts: Parts,
    fit: Fit,
    metrics: dict[str, Any],
    device: torch.device,
    started: float,
) -> dict[str, Any]:
    """What ``run.json`` says."""
    return {
        "headstart": version("headstart"),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": dataclasses.asdict(settings),
        "seed": settings.seed,
        "label_names": list(cache.label_names or ()),
        "identity": dataclasses.asdict(identity),
        "encoder": cache.record["encoder"],
        "cache": str(cache.path.resolve()),
        "rows": {
            "train": len(parts.train),
            "validation": len(parts.validation),
            "test": len(parts.test),
            "shared": parts.shared_rows,
        },
        "best_epoch": fit.best_epoch,
        "history": [dataclasses.asdict(epoch) for epoch in fit.history],
        "metrics": metrics,
        "epoch_seconds": fit.seconds / settings.epochs,
        "encoder_epoch_seconds": encoder_epoch_seconds(cache, len(parts.train) + len(parts.validation)),
        "fit_seconds": fit.seconds,
        "seconds": time.perf_counter() - started,
        "machine": machine(device),
        "versions": {"torch": torch.__version__},
    }


def encoder_epoch_seconds(cache: Cache, rows: int) -> float | None:
    """What one epoch over so many rows would take if the encoder read them, copies too, at the speed it had.

    An estimate: rows are taken to be of the cache's mean length, and the encoder to be as fast as while extracting,
    without the padding and the training pass that a real loop adds. None where no speed was measured.
    """
    speed = cache.record["tokens_per_second"]
    return None if not speed else cache.record["tokens"] / cache.rows * rows / speed
