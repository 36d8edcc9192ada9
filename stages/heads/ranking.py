"""What a sweep found, as a ranking of its settings and as a table of every epoch of every head."""

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
"""What each ranking looks at, and whether low (1) or high (-1) wins."""


def rank(settings: SweepSettings, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rank the settings by their mean over seeds and folds, each head at its best epoch.

    Returns:
        From the best: ``setting``, its number; ``values``, what varies; ``heads`` and how many of them ``diverged``;
        for each of the measures its ``mean`` and ``spread``, the standard deviation over seeds and folds (None where
        there is one head). Both are None where a head diverged, and such settings stand last.
    """
    lines = []
    results_of: dict[int, list[dict[str, Any]]] = {}
    for result in found:
        results_of.setdefault(result["setting"], []).append(result)
    ranked, ranked_sign = MEASURES[settings.rank_by]
    for number, each in enumerate(settings.settings()):
        results = results_of[number]
        diverged = sum(result["diverged"] for result in results)
        line: dict[str, Any] = {
            "setting": number,
            "values": {name: getattr(each, name) for name in settings.values},
            "heads": len(results),
            "diverged": diverged,
        }
        for measure, _ in MEASURES.values():
            values = [_at_best(result, measure) for result in results]
            if diverged:
                line[measure] = {"mean": None, "spread": None}
            else:
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
                line[measure] = {"mean": float(np.mean(values)), "spread": spread}
        lines.append(line)
    return sorted(lines, key=lambda line: math.inf if line["diverged"] else ranked_sign * line[ranked]["mean"])


def _at_best(result: dict[str, Any], measure: str) -> float:
    history = result["history"]
    return float(history[measure][history["epoch"].index(result["best_epoch"])]) if not result["diverged"] else math.nan


def table_columns(settings: SweepSettings, found: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The columns of ``sweep.parquet``: one row for each epoch of each head."""
    named = settings.settings()
    fields = [field.name for field in dataclasses.fields(TrainSettings) if field.name not in ("seed", "fold")]
    columns: dict[str, list[Any]] = {}

    def add(name: str, values: list[Any]) -> None:
        columns.setdefault(name, []).extend(values)

    for result in found:
        history = result["history"]
        rows = len(history["epoch"])
        each = named[result["setting"]]
        for name in ("setting", "seed", "fold", "diverged"):
            add(name, [result[name]] * rows)
        for name in fields:
            value = getattr(each, name)
            add(name, [value.value if hasattr(value, "value") else value] * rows)
        for name, values in history.items():
            add(name, values)
        add("best", [epoch == result["best_epoch"] for epoch in history["epoch"]])
        for name in ("objective", "gradient_norm", "gap", "iterations", "converged", "reason"):
            certificate = result["certificate"]
            add(name, [None if certificate is None else certificate[name]] * rows)
    return columns
