"""Stage two: a head trains on cached features. No encoder runs, and none is loaded."""

from __future__ import annotations

import dataclasses
import datetime
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cache.errors import SettingsError
from ..cache.reader import Cache, open_cache
from .devices import choose_device, machine
from .heads.calibration import fit_temperature
from .heads.dataset import Dataset
from .heads.head import Head
from .heads.logistic import ConvergenceReport, LogisticSolver
from .heads.metrics import evaluate
from .heads.scaler import Parameters
from .heads.trainer import Epoch, fit_head
from .progress import Note, Report, Step, silent
from .runs.run import RUN
from .runs.savings import passes_of_cached
from .settings import Solver, TrainSettings
from .splits.divide import Indices, Splits, divide
from .splits.relabel import relabel
from .threads import open_threads


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels from elsewhere.

    Attributes:
        table: A table of texts and labels, which take the place of the caches' own.
        text_column: Its column of texts.
        text_pair_column: Its column of second texts, where the caches are of pairs.
        label_column: Its column of labels.
    """

    table: str | Path
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"


def train_head(
    cache: str | Path,
    out: str | Path,
    settings: TrainSettings | None = None,
    *,
    test: str | Path | None = None,
    validation: str | Path | None = None,
    labels: Labels | None = None,
    overwrite: bool = False,
    wait: bool = False,
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
        labels: Labels to put in the place of the caches' own; rows whose text it does not have are left out.
        overwrite: Replace the run at ``out``.
        wait: Where another run is writing ``out``, wait until it is done.
        report: Where progress and notes go.

    Returns:
        The run folder: ``head.safetensors`` and ``run.json``.

    Raises:
        NotOursError: a cache is not one, or is unfinished.
        DamagedError: a cache's checksums do not hold.
        IdentityError: the caches are of different encoders or settings.
        TableError: the labels cannot be trained on.
        OutputExistsError: ``out`` is there already.
        BusyError: another run is writing ``out``, and ``wait`` is False.
    """
    settings = settings or TrainSettings()
    out = Path(out)
    with RUN.held(out, overwrite=overwrite, wait=wait, report=report):
        started = time.perf_counter()
        device = head_device(settings.device)
        require_one_way(settings, validation)
        train_cache, validation_cache, test_cache = open_checked(cache, validation, test, labels=labels, report=report)
        assert train_cache is not None
        parts = divide(train_cache, validation=validation_cache, test=test_cache, settings=settings, report=report)
        names = train_cache.label_names or ()
        found = find_head(parts, classes=len(names), settings=settings, device=device, report=report)
        head = make_head(found.parameters, train_cache, settings)
        if settings.calibrate:
            logits = np.concatenate([head.logits(chunk) for chunk in parts.validation.chunks()])
            head = dataclasses.replace(head, temperature=fit_temperature(logits, parts.validation.targets))
        metrics = {
            "validation": score(head, parts.validation, parts.validation_groups),
            "test": score(head, parts.test, parts.test_groups),
        }
        with RUN.new(out, overwrite=overwrite) as folder:
            head.save(folder)
            fields = _fields(train_cache, head, settings, parts, found, device)
            told = None if labels is None else {**dataclasses.asdict(labels), "table": str(labels.table)}
            seconds = time.perf_counter() - started
            RUN.write(folder, {**fields, "labels": told, "metrics": metrics, "seconds": seconds})
        return out


def require_one_way(settings: TrainSettings, validation: str | Path | None) -> None:
    """Refuse two ways at once of saying which rows a head is chosen by.

    Raises:
        SettingsError: there are folds and a validation cache.
    """
    if settings.folds and validation is not None:
        raise SettingsError("`folds` and `validation` both say which rows to choose by; choose one of them")


def head_device(name: str) -> torch.device:
    """Where heads train: as `choose_device`, but for MPS, which has no float64 for the sums.

    Raises:
        SettingsError: no such device here, or MPS is asked for by name.
    """
    device = choose_device(name)
    if device.type != "mps":
        return device
    if name != "auto":
        raise SettingsError(f"device {name!r} has no float64, which heads are summed in; try `device=cpu`")
    return torch.device("cpu")


def open_checked(*paths: str | Path | None, labels: Labels | None, report: Report) -> tuple[Cache | None, ...]:
    """Open caches, hold their rows against their checksums, and put other labels on them where there are such."""
    opened: dict[str, Cache] = {}
    for path in paths:
        if path is not None and str(path) not in opened:
            cache = open_cache(path)
            _check(cache, report)
            if labels is not None:
                cache = relabel(
                    cache,
                    labels.table,
                    text_column=labels.text_column,
                    text_pair_column=labels.text_pair_column,
                    label_column=labels.label_column,
                    report=report,
                )
            opened[str(path)] = cache
    return tuple(None if path is None else opened[str(path)] for path in paths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A head's parameters, and how they were found: a curve from SGD, a certificate from the exact solver."""

    parameters: Parameters
    history: tuple[Epoch, ...] = ()
    best_epoch: int | None = None
    certificate: ConvergenceReport | None = None
    seconds: float


def find_head(parts: Splits, *, classes: int, settings: TrainSettings, device: torch.device, report: Report) -> Found:
    """Train or solve for one head, as the settings say."""
    if settings.solver is Solver.SGD:
        fit = fit_head(parts.train, parts.validation, classes=classes, settings=settings, device=device, report=report)
        return Found(parameters=fit.parameters, history=fit.history, best_epoch=fit.best_epoch, seconds=fit.seconds)
    started = time.perf_counter()
    report(Step("solving", 0, 0, "iterations"))
    with open_threads() as lanes:
        solver = LogisticSolver(parts.train, classes=classes, settings=settings, lanes=lanes)
        parameters, certificate = solver.solve(
            settings.l2, lambda iteration: report(Step("solving", iteration, 0, "iterations"))
        )
    if not certificate.converged:
        report(Note(f"the exact solver did not converge: {certificate.reason}"))
    return Found(parameters=parameters, certificate=certificate, seconds=time.perf_counter() - started)


def make_head(parameters: Parameters, cache: Cache, settings: TrainSettings) -> Head:
    """The head with these parameters, for the features that it was trained on."""
    return Head(
        weight=parameters["weight"],
        bias=parameters["bias"],
        hidden_weight=parameters.get("hidden.weight"),
        hidden_bias=parameters.get("hidden.bias"),
        label_names=cache.label_names or (),
        identity=cache.identity.narrowed(settings.feature),
    )


def score(head: Head, rows: Dataset, groups: Indices) -> dict[str, Any]:
    """A head's metrics on some rows."""
    said = np.concatenate([head.log_probabilities(chunk) for chunk in rows.chunks()])
    return evaluate(rows.targets, said, groups, names=head.label_names)


def _check(cache: Cache, report: Report) -> None:
    cache.check(lambda block: report(Step("checking", block + 1, cache.layout.blocks, "blocks")))


def _fields(
    cache: Cache, head: Head, settings: TrainSettings, parts: Splits, found: Found, device: torch.device
) -> dict[str, Any]:
    """What ``run.json`` says of the training."""
    # Without a cache every epoch encodes the rows that it trains on and is chosen by, and the test its own. A solver
    # would keep what it encoded once.
    epochs = len(found.history) or 1
    passes = epochs * (len(parts.train) + len(parts.validation)) + len(parts.test)
    return {
        "headstart": version("headstart"),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": dataclasses.asdict(settings),
        "seed": settings.seed,
        "label_names": list(head.label_names),
        "identity": dataclasses.asdict(head.identity),
        "encoder": cache.record["encoder"],
        "cache": str(cache.path.resolve()),
        "rows": {
            "train": len(parts.train),
            "validation": len(parts.validation),
            "test": len(parts.test),
            "shared": parts.shared_rows,
        },
        "temperature": head.temperature,
        "best_epoch": found.best_epoch,
        "history": [dataclasses.asdict(epoch) for epoch in found.history],
        "certificate": None if found.certificate is None else dataclasses.asdict(found.certificate),
        "epoch_seconds": found.seconds / len(found.history) if found.history else None,
        "fit_seconds": found.seconds,
        "encoder_passes": dataclasses.asdict(passes_of_cached(cache.record, passes)),
        "machine": machine(device),
        "versions": {"torch": torch.__version__},
    }
