"""The folder that a training run leaves: ``head.safetensors`` and ``run.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..cache.errors import DamagedError
from .folders import FolderKind

HEAD_FILE = "head.safetensors"
RUN = FolderKind(name="run", file="run.json", format="headstart-run", version=1, command="headstart train-head")


def read_run(folder: Path) -> dict[str, Any]:
    """Read and check ``run.json``.

    Raises:
        NotOursError: the folder is not a run, or one of a newer version.
        DamagedError: its ``run.json`` is not what it should be.
        StorageError: it cannot be read.
    """
    fields, path = RUN.read(folder), folder / RUN.file
    names = fields.get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DamagedError(f"{path}: its label_names are not a list of names")
    for name in ("identity", "encoder", "settings", "metrics"):
        if not isinstance(fields.get(name), dict):
            raise DamagedError(f"{path}: it lacks {name!r}")
    return fields
