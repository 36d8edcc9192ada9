"""What a cache or a run says of itself, as plain values for a screen or for JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..cache.reader import open_cache
from .baseline.report import SPEEDUP
from .runs.run import RUN, read_run
from .runs.sweep_folder import SWEEP, read_sweep


def inspect_path(path: str | Path) -> dict[str, Any]:
    """Describe a cache file or a folder: its ``kind`` (``cache``, ``run``, ``sweep``, ``speedup``) and all it records.

    Raises:
        NotOursError: it is neither.
        DamagedError: it is damaged.
    """
    path = Path(path)
    if (path / SWEEP.file).is_file():
        return {"kind": "sweep", "path": str(path), **read_sweep(path)}
    if (path / SPEEDUP.file).is_file():
        return {"kind": "speedup", "path": str(path), **SPEEDUP.read(path)}
    if path.is_dir() or path.name == RUN.file:
        folder = path.parent if path.name == RUN.file else path
        return {"kind": "run", "path": str(folder), **read_run(folder)}
    cache = open_cache(path)
    counts = cache.label_counts()
    return {
        "kind": "cache",
        "path": str(path),
        "bytes": path.stat().st_size,
        "rows": cache.rows,
        "features": dict(cache.layout.widths),
        "storage": cache.layout.storage,
        "block_rows": cache.layout.block_rows,
        "label_rows": counts,
        "identity": dataclasses.asdict(cache.identity),
        "plan": dict(cache.plan),
        "record": dict(cache.record),
    }
