"""The ranking of a sweep's settings, and its table of every epoch of every head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, TypedDict, get_args, get_origin, get_type_hints

import numpy as np

from ..settings import Metric, SweepSettings, TrainSettings

_LOSS = "validation_loss"


def measure_name(metric: Metric) -> str:
    """The name of a metric in ``sweep.json``: ``validation_loss``, ``validation_macro_f1`` and so on."""
    return _LOSS if metric is Metric.LOG_LOSS else f"validation_{metric.replace('-', '_')}"


class History(TypedDict):
    """The training curve of one head, one value per epoch; see `Epoch`. The only epoch of a head that was solved for is
    0."""

    epoch: list[int]
    train_loss: list[float]
    validation_loss: list[float]
    validation_accuracy: list[float | None]
    validation_macro_f1: list[float | None]


class HeadResult(TypedDict):
    """What a sweep keeps of one head, as a JSON document.

    ``setting`` is the number of its settings, in the order of `SweepSettings.settings`. ``best_epoch`` is 0 if training
    diverged at once. ``measures`` are the metrics that heads of this kind of target can be ranked by, at the best
    epoch; empty if it diverged. ``certificate`` is the exact solver's `ConvergenceReport`; None from SGD.
    """

    setting: int
    seed: int
    fold: int
    diverged: bool
    best_epoch: int
    history: History
    measures: dict[str, float]
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
        for measure in dict.fromkeys(name for head in results for name in head["measures"]):
            mean = spread = None
            if not diverged:
                values = [head["measures"][measure] for head in heads]
                mean = float(np.mean(values))
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            line[measure] = {"mean": mean, "spread": spread}
        lines.append(line)
    measure, sign = measure_name(settings.rank_by), 1 if settings.rank_by.lower_is_better else -1
    return sorted(lines, key=lambda line: math.inf if line["diverged"] else sign * line[measure]["mean"])


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of ``sweep.parquet``. A value is of the type, or None."""

    kind: type  # bool, int, float or str
    values: list[Any]


def table_columns(settings: SweepSettings, results: Sequence[HeadResult]) -> dict[str, Column]:
    """The columns of ``sweep.parquet``: one row for each epoch of each head.

    Their types are those of the fields of `HeadResult`, `TrainSettings`, `History` and `ConvergenceReport`, whatever
    the values are, so that the tables of several sweeps combine.
    """
    from .logistic import ConvergenceReport  # loads torch, which `inspect` does without

    compared = settings.settings()
    hints: dict[str, Any] = {name: get_type_hints(HeadResult)[name] for name in ("setting", "seed", "fold", "diverged")}
    names = [field.name for field in dataclasses.fields(TrainSettings) if field.name not in hints]
    hints |= {name: get_type_hints(TrainSettings)[name] for name in names}
    hints |= {**get_type_hints(History), "best": bool}
    convergence_names = ("objective", "gradient_norm", "gap", "iterations", "converged", "reason")
    hints |= {name: get_type_hints(ConvergenceReport)[name] for name in convergence_names}
    columns = {name: Column(_kind(hint), []) for name, hint in hints.items()}
    for head in results:
        history: Mapping[str, Any] = head["history"]
        certificate = head["certificate"] or {}
        constants: dict[str, Any] = dataclasses.asdict(compared[head["setting"]])
        constants = {name: ",".join(v) if isinstance(v, tuple) else v for name, v in constants.items()}
        constants |= {**head, **{name: certificate.get(name) for name in convergence_names}}
        rows = {**history, "best": [epoch == head["best_epoch"] for epoch in history["epoch"]]}
        for name, column in columns.items():
            column.values.extend(rows[name] if name in rows else [constants[name]] * len(rows["best"]))
    return columns


def _kind(hint: Any) -> type:
    """The plain type of a field, of its values where it may be None, or of the items of its list; several names are one
    text."""
    if get_origin(hint) is list:
        return _kind(*get_args(hint))
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
    kind = str if get_origin(kinds[0]) is tuple else kinds[0]
    return next(plain for plain in (bool, int, float, str) if issubclass(kind, plain))
