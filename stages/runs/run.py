"""The folder that a training run leaves: ``head.safetensors`` and ``run.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...cache.documents import Kind, are_names, require_fields
from ...cache.errors import DamagedError
from ...cache.reader import ENCODER_FIELDS
from .folders import FolderKind

HEAD_FILE = "head.safetensors"
RUN = FolderKind(name="run", file="run.json", format="headstart-run", version=1, command="headstart train-head")
_FIELDS: dict[str, Kind] = {
    "label_names": (list,),
    "identity": (dict,),
    "settings": (dict,),
    "encoder": ENCODER_FIELDS,
    "rows": {"train": (int,), "validation": (int,), "test": (int,)},
    "metrics": {"validation": (dict,), "test": (dict,)},
    "history": (list,),
    "temperature": (int, float),
    "seconds": (int, float),
}
"""What every ``run.json`` holds; it may hold more."""


def read_run(folder: Path) -> dict[str, Any]:
    """Read and check ``run.json``.

    Raises:
        NotOursError: the folder is not a run, or one of a newer version.
        DamagedError: its ``run.json`` is not what it should be.
        StorageError: it cannot be read.
    """
    fields, path = RUN.read(folder), folder / RUN.file
    require_fields(fields, _FIELDS, str(path))
    if not are_names(fields["label_names"]):
        raise DamagedError(f"{path}: its label_names are not a list of distinct names")
    return fields
