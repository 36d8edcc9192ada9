"""Stage two: train a head on cached features. No encoder is loaded."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from .heads.fit import head_device
from .progress import Action, Outcome, Report, in_notebooks
from .runs.results import Run, open_run
from .runs.run import RUN, write_run
from .runs.training import train_run
from .settings import Labels, TrainSettings, settings_from, takes
from .splits.divide import divide_features, open_caches, require_unchanged


@takes(TrainSettings)
def train_head(
    cache: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: TrainSettings | None = None,
    *,
    test: str | os.PathLike[str] | None = None,
    validation: str | os.PathLike[str] | None = None,
    labels: Labels | None = None,
    overwrite: bool = False,
    wait: bool = False,
    report: Report = in_notebooks,
    **options: Any,
) -> Run:
    """Train a head on a cache's features, choose it by folds or on validation rows, and test it once.

    The checksums of all rows are verified first, so no head is trained on damaged features.

    Args:
        cache: The cache to train on.
        out: The run folder to write.
        settings: See `TrainSettings`.
        test: A cache to test on; without it, a share of the rows is held out.
        validation: A cache to choose by; without it, folds of the training rows choose, or a share of them is held
            out for SGD.
        labels: A table whose labels replace the caches' own. Rows whose text it does not hold are left out.
        overwrite: Replace the run at ``out``.
        wait: If another run is writing ``out``, wait until it has ended.
        report: Receives progress, notes and the outcome. In a notebook, progress is shown by default.
        options: Settings by name, instead of ``settings``.

    Returns:
        The run. It is a path too: of the folder with ``head.safetensors``, ``predictions.parquet`` and ``run.json``.

    Raises:
        FormatError: a path is not a cache, or the cache is unfinished.
        DamagedError: a cache's checksums do not match.
        IdentityError: the caches come from different encoders or settings.
        SettingsError: two settings contradict each other, or training diverged.
        TableError: no head can be trained on the labels.
        OutputExistsError: ``out`` exists already.
        BusyError: another run is writing ``out``, and ``wait`` is False.
    """
    settings, out = settings_from(TrainSettings, settings, options), Path(out)
    with RUN.held(out, overwrite=overwrite, wait=wait, report=report):
        started, device = time.perf_counter(), head_device(settings.device)
        caches = open_caches(cache, validation=validation, test=test, settings=settings, labels=labels, report=report)
        splits = divide_features(*caches, settings=settings, validated=settings.needs_validation, report=report)
        head, run, predictions = train_run(caches[0], splits, settings, labels=labels, device=device, report=report)
        require_unchanged(caches)
        with RUN.new(out, overwrite=overwrite) as folder:
            write_run(folder, head, {**run, "seconds": time.perf_counter() - started}, predictions)
    counts = {f"{split}_rows": run["rows"][split] for split in ("train", "validation", "test")}
    counts["epochs"] = len(run["history"])
    report(Outcome(command="train-head", output=out, action=Action.MADE, counts=counts))
    return open_run(out)
