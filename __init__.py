"""headstart: run a frozen encoder once, keep its features, train heads on them in seconds.

    import headstart

    cache = headstart.extract("reviews.csv", "reviews.h5", encoder="bert-base-chinese")
    run = headstart.train_head(cache, "run")
    model = headstart.load(run)
    model.predict(["a lovely surprise", "never again"])

Names load what they need when they are first used, so importing this package loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache.errors import HeadstartError, UserError
    from .cache.identity import Identity
    from .cache.reader import Cache, open_cache
    from .stages.audit import audit
    from .stages.estimators import CachedEncoder as CachedEncoder
    from .stages.estimators import HeadClassifier as HeadClassifier
    from .stages.evaluate import evaluate
    from .stages.export import export
    from .stages.extract import extract, extract_tables
    from .stages.heads.head import Head
    from .stages.join import join
    from .stages.model import TextClassifier, load
    from .stages.predict import Predictions, predict
    from .stages.report import report
    from .stages.runs.results import Run, Sweep, open_run, open_sweep
    from .stages.runs.run import load_head
    from .stages.settings import (
        AuditSettings,
        EvaluateSettings,
        ExportFormat,
        ExportSettings,
        ExtractSettings,
        Labels,
        Precision,
        ReportSettings,
        SpeedupSettings,
        Storage,
        SweepSettings,
        TableSettings,
        TrainSettings,
    )
    from .stages.speedup import speedup
    from .stages.sweep import sweep
    from .stages.trackers import log_to
    from .stages.train_head import train_head

    __version__: str

_HOMES = {
    "AuditSettings": "stages.settings",
    "CachedEncoder": "stages.estimators",
    "Cache": "cache.reader",
    "EvaluateSettings": "stages.settings",
    "ExportFormat": "stages.settings",
    "ExportSettings": "stages.settings",
    "ExtractSettings": "stages.settings",
    "Head": "stages.heads.head",
    "HeadClassifier": "stages.estimators",
    "HeadstartError": "cache.errors",
    "Identity": "cache.identity",
    "Labels": "stages.settings",
    "Precision": "stages.settings",
    "Predictions": "stages.predict",
    "ReportSettings": "stages.settings",
    "SpeedupSettings": "stages.settings",
    "Run": "stages.runs.results",
    "Storage": "stages.settings",
    "Sweep": "stages.runs.results",
    "SweepSettings": "stages.settings",
    "TableSettings": "stages.settings",
    "TextClassifier": "stages.model",
    "TrainSettings": "stages.settings",
    "UserError": "cache.errors",
    "audit": "stages.audit",
    "evaluate": "stages.evaluate",
    "export": "stages.export",
    "extract": "stages.extract",
    "extract_tables": "stages.extract",
    "join": "stages.join",
    "load": "stages.model",
    "load_head": "stages.runs.run",
    "log_to": "stages.trackers",
    "open_cache": "cache.reader",
    "open_run": "stages.runs.results",
    "open_sweep": "stages.runs.results",
    "predict": "stages.predict",
    "report": "stages.report",
    "speedup": "stages.speedup",
    "sweep": "stages.sweep",
    "train_head": "stages.train_head",
}

# Without CachedEncoder and HeadClassifier: `import *` must not ask for scikit-learn.
__all__ = [
    "AuditSettings",
    "Cache",
    "EvaluateSettings",
    "ExportFormat",
    "ExportSettings",
    "ExtractSettings",
    "Head",
    "HeadstartError",
    "Identity",
    "Labels",
    "Precision",
    "Predictions",
    "ReportSettings",
    "Run",
    "SpeedupSettings",
    "Storage",
    "Sweep",
    "SweepSettings",
    "TableSettings",
    "TextClassifier",
    "TrainSettings",
    "UserError",
    "__version__",
    "audit",
    "evaluate",
    "export",
    "extract",
    "extract_tables",
    "join",
    "load",
    "load_head",
    "log_to",
    "open_cache",
    "open_run",
    "open_sweep",
    "predict",
    "report",
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
