"""The ranking of a sweep's settings, and its table of every epoch of every head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypedDict

import numpy as np

from ..settings import Ranking, SweepSettings, TrainSettings

MEASURES = {
    Ranking.LOG_LOSS: ("validation_loss", 1),
    Ranking.ACCURACY: ("validation_accuracy", -1),
    Ranking.MACRO_F1: ("validation_macro_f1", -1),
}
"""Which measure each ranking compares, and whether a low value (1) or a high one (-1) wins."""


class History(TypedDict):
    """The training curve of one head, one value per epoch; see `Epoch`. The exact solver's only epoch is 0."""

    epoch: list[int]
    train_loss: list[float]
    validation_loss: list[float]
    validation_accuracy: list[float]
    validation_macro_f1: list[float]


class HeadResult(TypedDict):
    """What a sweep keeps of one head, as a JSON document.

    ``setting`` is the number of its settings, in the order of `SweepSettings.settings`. ``best_epoch`` is 0 if training
    diverged at once. ``certificate`` is the exact solver's `ConvergenceReport`; None from SGD.
    """

    setting: int
    seed: int
    fold: int
    diverged: bool
    best_epoch: int
    history: History
    certificate: dict[str, Any] | None


def rank(settings: SweepSettings, results: Sequence[HeadResult]) -> list[dict[str, Any]]:
    """Rank the settings by their mean over seeds and folds, each head at its best epoch.

    Returns:
        From the best to the worst: ``setting``, its number; ``values``, what varies; ``heads`` and how many of them
        ``diverged``; for each measure its ``mean`` and ``spread``, the standard deviation over seeds and folds (None
        for a single head). Settings with a diverged head come last, and have None for both.
    """
    lines = []
    heads_of: dict[int, list[HeadResult]] = {}
    for result in results:
        heads_of.setdefault(result["setting"], []).append(result)
    for number, setting in enumerate(settings.settings()):
        heads = heads_of[number]
        diverged = sum(head["diverged"] for head in heads)
        line: dict[str, Any] = {
            "setting": number,
            "values": {name: getattr(setting, name) for name in settings.values},
            "heads": len(heads),
            "diverged": diverged,
        }
        for measure, _ in MEASURES.values():
            mean = spread = None
            if not diverged:
                values = [_at_best_epoch(head, measure) for head in heads]
                mean = float(np.mean(values))
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            line[measure] = {"mean": mean, "spread": spread}
        lines.append(line)
    measure, sign = MEASURES[settings.rank_by]
    return sorted(lines, key=lambda line: math.inf if line["diverged"] else sign * line[measure]["mean"])


def _at_best_epoch(head: HeadResult, measure: str) -> float:
    history: Mapping[str, Any] = head["history"]
    return float(history[measure][history["epoch"].index(head["best_epoch"])])


def table_columns(settings: SweepSettings, results: Sequence[HeadResult]) -> dict[str, list[Any]]:
    """The columns of ``sweep.parquet``: one row for each epoch of each head."""
    compared = settings.settings()
    names = [field.name for field in dataclasses.fields(TrainSettings) if field.name not in ("seed", "fold")]
    columns: dict[str, list[Any]] = {}
    for head in results:
        history: Mapping[str, Any] = head["history"]
        epochs, convergence, setting = history["epoch"], head["certificate"] or {}, compared[head["setting"]]
        constants: dict[str, Any] = {name: head[name] for name in ("setting", "seed", "fold", "diverged")}
        constants |= {name: getattr(setting, name) for name in names}
        rows = {name: [str(v) if isinstance(v, StrEnum) else v] * len(epochs) for name, v in constants.items()}
        rows |= {**history, "best": [epoch == head["best_epoch"] for epoch in epochs]}
        for name in ("objective", "gradient_norm", "gap", "iterations", "converged", "reason"):
            rows[name] = [convergence.get(name)] * len(epochs)
        for name, values in rows.items():
            columns.setdefault(name, []).extend(values)
    return columns
