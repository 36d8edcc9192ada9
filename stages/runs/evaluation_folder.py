"""The folder of an evaluation: ``predictions.parquet`` has a line for each new row, ``evaluation.json`` the metrics."""

from __future__ import annotations

from typing import Any, TypedDict

from .folders import FolderKind


class _EvaluationRecord(TypedDict):
    """Fields that every ``evaluation.json`` holds; it MAY hold more."""

    label_names: list[str]
    settings: dict[str, Any]
    rows: dict[str, Any]
    metrics: dict[str, Any]
    worst: list[Any]
    seconds: float


EVALUATION = FolderKind(
    name="evaluation",
    file="evaluation.json",
    format="headstart-evaluation",
    version=1,
    command="headstart evaluate",
    others=r"predictions\.parquet",
    record=_EvaluationRecord,
)
