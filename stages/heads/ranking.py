"""The ranking of a sweep's settings, and its table of every epoch of every head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..settings import Ranking, SweepSettings, TrainSettings

MEASURES = {
    Ranking.LOG_LOSS: ("validation_loss", 1),
    Ranking.ACCURACY: ("validation_accuracy", -1),
    Ranking.MACRO_F1: ("validation_macro_f1", -1),
}
"""Which measure each ranking compares, and whether a low value (1) or a high one (-1) wins."""


@dataclasses.dataclass(frozen=True)
class History:
    """The training curve of one head, one value per epoch; see `Epoch`. The exact solver's only epoch is 0."""

    epoch: list[int]
    train_loss: list[float]
    validation_loss: list[float]
    validation_accuracy: list[float]
    validation_macro_f1: list[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadResult:
    """What a sweep keeps of one head, as a JSON document.

    Attributes:
        setting: The number of its settings, in the order of `SweepSettings.settings`.
        seed, fold: Its seed and fold.
        diverged: Its loss was no longer finite.
        best_epoch: The epoch of the lowest validation loss; 0 if training diverged at once.
        history: Its training curve.
        certificate: The exact solver's `ConvergenceReport`; None from SGD.
    """

    setting: int
    seed: int
    fold: int
    diverged: bool
    best_epoch: int
    history: History
    certificate: dict[str, Any] | None

    def best(self, measure: str) -> float:
        """A measure at the best epoch."""
        return float(getattr(self.history, measure)[self.history.epoch.index(self.best_epoch)])


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
        heads_of.setdefault(result.setting, []).append(result)
    for number, setting in enumerate(settings.settings()):
        heads = heads_of[number]
        diverged = sum(head.diverged for head in heads)
        line: dict[str, Any] = {
            "setting": number,
            "values": {name: getattr(setting, name) for name in settings.values},
            "heads": len(heads),
            "diverged": diverged,
        }
        for measure, _ in MEASURES.values():
            mean = spread = None
            if not diverged:
                values = [head.best(measure) for head in heads]
                mean = float(np.mean(values))
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            line[measure] = {"mean": mean, "spread": spread}
        lines.append(line)
    measure, sign = MEASURES[settings.rank_by]
    return sorted(lines, key=lambda line: math.inf if line["diverged"] else sign * line[measure]["mean"])


def table_columns(settings: SweepSettings, results: Sequence[HeadResult]) -> dict[str, list[Any]]:
    """The columns of ``sweep.parquet``: one row for each epoch of each head."""
    compared = settings.settings()
    names = [field.name for field in dataclasses.fields(TrainSettings) if field.name not in ("seed", "fold")]
    columns: dict[str, list[Any]] = {}
    for result in results:
        convergence, rows = result.certificate or {}, len(result.history.epoch)
        constants = {name: getattr(result, name) for name in ("setting", "seed", "fold", "diverged")}
        for name in names:
            value = getattr(compared[result.setting], name)
            constants[name] = value.value if hasattr(value, "value") else value
        head = {name: [value] * rows for name, value in constants.items()} | dataclasses.asdict(result.history)
        head["best"] = [epoch == result.best_epoch for epoch in result.history.epoch]
        for name in ("objective", "gradient_norm", "gap", "iterations", "converged", "reason"):
            head[name] = [convergence.get(name)] * rows
        for name, values in head.items():
            columns.setdefault(name, []).extend(values)
    return columns
