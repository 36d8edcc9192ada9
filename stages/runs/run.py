"""The folder that a training run leaves: ``head.safetensors`` and ``run.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from ...cache.documents import are_names, checked
from ...cache.errors import DamagedError
from ...cache.record import EncoderRecord
from .folders import FolderKind

HEAD_FILE = "head.safetensors"
RUN = FolderKind(name="run", file="run.json", format="headstart-run", version=1, command="headstart train-head")


class RunRows(TypedDict):
    """How many rows each part of the data had."""

    train: int
    validation: int
    test: int


class RunMetrics(TypedDict):
    """Metrics on two parts of the data."""

    validation: dict[str, Any]
    test: dict[str, Any]


class RunRecord(TypedDict):
    """What every ``run.json`` holds; it may hold more."""

    label_names: list[str]
    identity: dict[str, Any]
    settings: dict[str, Any]
    encoder: EncoderRecord
    rows: RunRows
    metrics: RunMetrics
    history: list[Any]
    temperature: float
    seconds: float


def read_run(folder: Path) -> dict[str, Any]:
    """Read and check ``run.json``.

    Raises:
        NotOursError: the folder is not a run, or one of a newer version.
        DamagedError: its ``run.json`` is not what it should be.
        StorageError: it cannot be read.
    """
    fields, path = RUN.read(folder), folder / RUN.file
    checked(fields, RunRecord, str(path))
    if not are_names(fields["label_names"]):
        raise DamagedError(f"{path}: its label_names are not a list of distinct names")
    return fields
