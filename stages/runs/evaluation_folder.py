"""The folder of an evaluation: ``predictions.parquet`` has a line for each new row, ``evaluation.json`` the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from ...cache.documents import checked
from .folders import FolderKind

EVALUATION = FolderKind(
    name="evaluation",
    file="evaluation.json",
    format="headstart-evaluation",
    version=1,
    command="headstart evaluate",
    others=r"predictions\.parquet",
)


class _EvaluationRecord(TypedDict):
    """Fields that every ``evaluation.json`` holds; it MAY hold more."""

    label_names: list[str]
    settings: dict[str, Any]
    rows: dict[str, Any]
    metrics: dict[str, Any]
    worst: list[Any]
    seconds: float


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Read and check ``evaluation.json``.

    Raises:
        As `FolderKind.read`; DamagedError also if a field is missing, or has the wrong type.
    """
    fields = EVALUATION.read(folder)
    checked(fields, _EvaluationRecord, str(folder / EVALUATION.file))
    return fields
