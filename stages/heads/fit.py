"""Find a head with either solver, and score it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from ...cache.errors import SettingsError
from ..devices import choose_device
from ..progress import Note, Report, Step, silent
from ..settings import Solver, TrainSettings
from ..threads import open_threads
from ..types import Indices
from .dataset import Dataset
from .head import Head
from .logistic import LogisticSolver
from .metrics import RESAMPLES, evaluate
from .trainer import Fit, fit_heads


def head_device(name: str) -> torch.device:
    """Choose a device as `choose_device` does, but never MPS: it has no float64, in which losses are summed.

    Raises:
        SettingsError: there is no such device, or MPS is asked for by name.
    """
    device = choose_device(name)
    if device.type == "mps" and name != "auto":
        raise SettingsError(f"device {name!r} has no float64, in which losses are summed; try `device=cpu`")
    return torch.device("cpu") if device.type == "mps" else device


def fit_head(
    train: Dataset,
    validation: Dataset,
    *,
    classes: int,
    settings: TrainSettings,
    device: torch.device,
    report: Report = silent,
) -> Fit:
    """Find one head with the solver that the settings name: see `fit_heads` and `LogisticSolver`.

    Raises:
        SettingsError: training diverged.
    """
    started = time.perf_counter()
    if settings.solver is Solver.SGD:
        (fit,) = fit_heads(
            train,
            validation,
            classes=classes,
            settings=[settings],
            device=device,
            on_epoch=lambda trainer: report(Step("training", trainer.epoch, settings.epochs, "epochs")),
        )
        if fit.diverged:
            message = f"training diverged in epoch {len(fit.history)} (the loss is not finite)"
            raise SettingsError(f"{message}; lower the learning rate")
        return fit
    report(Step("solving", 0, 0, "iterations"))
    with open_threads() as threads:
        solver = LogisticSolver(train, classes=classes, settings=settings, threads=threads)
        parameters, convergence = solver.solve(settings.l2, lambda done: report(Step("solving", done, 0, "iterations")))
    if not convergence.converged:
        report(Note(f"the exact solver did not converge: {convergence.reason}"))
    return Fit(parameters=parameters, convergence=convergence, seconds=time.perf_counter() - started)


def score(head: Head, dataset: Dataset, groups: Indices, *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """The metrics of a head on a dataset; see `evaluate`."""
    log_probabilities = np.concatenate([head.log_probabilities(chunk) for chunk in dataset.chunks()])
    return evaluate(dataset.targets, log_probabilities, groups, names=head.label_names, resamples=resamples)
