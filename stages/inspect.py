"""What a cache or a run says of itself, as plain values for a screen or for JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..cache.reader import open_cache
from .run import RUN_FILE, read_run
from .sweep_folder import SWEEP_FILE, read_sweep


def inspect_path(path: str | Path) -> dict[str, Any]:
    """Describe a cache file, a run or a sweep: its ``kind`` (``cache``, ``run``, ``sweep``) and all that it records.

    Raises:
        NotOursError: it is neither.
        DamagedError: it is damaged.
    """
    path = Path(path)
    if (path / SWEEP_FILE).is_file():
        return {"kind": "sweep", "path": str(path), **read_sweep(path)}
    if path.is_dir() or path.name == RUN_FILE:
        folder = path.parent if path.name == RUN_FILE else path
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
