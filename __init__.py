"""headstart: run a frozen encoder once, keep its features, train heads on them in seconds.

    import headstart

    cache = headstart.extract("reviews.csv", "reviews.h5", headstart.ExtractSettings(encoder="bert-base-chinese"))
    run = headstart.train_head(cache, "run")
    head = headstart.load_head(run)

Names load what they need when they are first used, so importing this package loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache.errors import HeadstartError, UserError
    from .cache.identity import Identity
    from .cache.reader import Cache, open_cache
    from .stages.extract import extract, extract_tables
    from .stages.heads.head import Head, load_head
    from .stages.predict import predict
    from .stages.settings import ExtractSettings, Precision, SpeedupSettings, Storage, SweepSettings, TrainSettings
    from .stages.speedup import speedup
    from .stages.sweep import sweep
    from .stages.train_head import Labels, train_head

    __version__: str

_HOMES = {
    "Cache": "cache.reader",
    "ExtractSettings": "stages.settings",
    "Head": "stages.heads.head",
    "HeadstartError": "cache.errors",
    "Identity": "cache.identity",
    "Labels": "stages.train_head",
    "Precision": "stages.settings",
    "SpeedupSettings": "stages.settings",
    "Storage": "stages.settings",
    "SweepSettings": "stages.settings",
    "TrainSettings": "stages.settings",
    "UserError": "cache.errors",
    "extract": "stages.extract",
    "extract_tables": "stages.extract",
    "load_head": "stages.heads.head",
    "open_cache": "cache.reader",
    "predict": "stages.predict",
    "speedup": "stages.speedup",
    "sweep": "stages.sweep",
    "train_head": "stages.train_head",
}

__all__ = [
    "Cache",
    "ExtractSettings",
    "Head",
    "HeadstartError",
    "Identity",
    "Labels",
    "Precision",
    "SpeedupSettings",
    "Storage",
    "SweepSettings",
    "TrainSettings",
    "UserError",
    "__version__",
    "extract",
    "extract_tables",
    "load_head",
    "open_cache",
    "predict",
    "speedup",
    "sweep",
    "train_head",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # takes as long to load as the rest of `import headstart`

        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
