"""What a cache or an output folder records, as plain values for a screen or for JSON."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from ..cache.reader import open_cache
from .baseline.report import SPEEDUP
from .runs.audit_folder import AUDIT, ISSUES_FILE
from .runs.evaluation_folder import EVALUATION
from .runs.export_folder import EXPORT
from .runs.predictions import PREDICTIONS_FILE
from .runs.run import RUN, read_run
from .runs.sweep_folder import SWEEP


def inspect_path(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a cache file or an output folder.

    Returns:
        ``kind`` (``cache``, ``run``, ``sweep``, ``audit``, ``evaluation``, ``export`` or ``speedup``), ``path``, and
        everything that it records.

    Raises:
        FormatError: the path is neither a cache nor a folder of headstart's.
        DamagedError: the file is damaged.
    """
    path = Path(path)
    if (path / SWEEP.file).is_file():
        return {"kind": "sweep", "path": str(path), **SWEEP.read(path)}
    if (path / SPEEDUP.file).is_file():
        return {"kind": "speedup", "path": str(path), **SPEEDUP.read(path)}
    if (path / AUDIT.file).is_file():
        return {"kind": "audit", "path": str(path), **AUDIT.read(path), "lines": str(path / ISSUES_FILE)}
    if (path / EVALUATION.file).is_file():
        return {"kind": "evaluation", "path": str(path), **EVALUATION.read(path)}
    if (path / EXPORT.file).is_file():
        return {"kind": "export", "path": str(path), **EXPORT.read(path)}
    if path.is_dir() or path.name == RUN.file:
        folder = path.parent if path.name == RUN.file else path
        predictions = folder / PREDICTIONS_FILE  # runs made earlier lack it
        held = {"predictions": str(predictions) if predictions.is_file() else None}
        return {"kind": "run", "path": str(folder), **read_run(folder), **held}
    cache = open_cache(path)
    return {
        "kind": "cache",
        "path": str(path),
        "bytes": cache.bytes,
        "shards": [str(file.path) for file in cache.files if file is not cache],
        "rows": cache.rows,
        "features": dict(cache.layout.widths),
        "storage": cache.layout.storage,
        "block_rows": cache.layout.block_rows,
        "label_kind": cache.label_kind,
        "label_rows": cache.label_counts(),
        "label_range": cache.label_range(),
        "identity": dataclasses.asdict(cache.identity),
        "plan": dict(cache.plan),
        "record": dict(cache.record),
    }
