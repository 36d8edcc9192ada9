"""What reports are made of: runs of every kind of target, a sweep and an audit, with hostile texts and labels."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from extracting import run
from headstart.stages.audit import audit
from headstart.stages.settings import AuditSettings, Metric, SweepSettings, Task, TrainSettings
from headstart.stages.sweep import sweep
from headstart.stages.train_head import train_head
from tiny import tiny_rows

SCRIPT = "<script>window.ran=1</script><img src=x onerror='window.ran=1'>"
TEXT_END = f" {SCRIPT} </script> <!-- \u2028 \u202e%{{y}} $x$ <b>bold</b> &lt;"
LABELS = ("</script><script>window.ran=1</script>", "a & \"b\" 'c' %{x}", "@accent=\u2028<i>")
TEXT_COLUMN = 'text"><script>window.ran=1</script>'
ROWS = tiny_rows(150, classes=3)
TEXTS = [text + TEXT_END * (row % 10 == 0) for row, (text, _) in enumerate(ROWS)]
CLASSES = np.unique([label for _, label in ROWS], return_inverse=True)[1].tolist()


def labels_of(task: Task) -> list[Any]:
    if task is Task.REGRESSION:
        return [label + row / 1000 for row, label in enumerate(CLASSES)]
    if task is Task.MULTI_LABEL:
        return [[LABELS[label], *[LABELS[0]] * (row % 3 == 0 and label > 0)] for row, label in enumerate(CLASSES)]
    return CLASSES if task is Task.ORDINAL else [LABELS[label] for label in CLASSES]


def make_folder(folder: Path, encoder: Path) -> None:
    """Make a folder with ``KIND.h5`` and the run ``KIND`` of each kind of target, ``sweep``, ``audit`` and
    ``table.csv``."""
    folder.mkdir()
    for task in (Task.CLASSES, Task.MULTI_LABEL, Task.REGRESSION, Task.ORDINAL):
        cache = folder / f"{task}.h5"
        run({"text": TEXTS, "label": labels_of(task)}, cache, encoder, task=task)
        train_head(cache, folder / task)
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([(TEXT_COLUMN, "label"), *zip(TEXTS, labels_of(Task.CLASSES), strict=True)])
    base = TrainSettings(solver="sgd", epochs=3, batch_size=64)
    values = {"learning_rate": (0.001, 0.01), "dropout": (0.0, 0.3)}
    settings = SweepSettings(base=base, values=values, seeds=(0, 1), rank_by=Metric.ACCURACY)
    sweep(folder / "classes.h5", folder / "sweep", settings)
    audit(folder / "classes.h5", folder / "audit", AuditSettings(l2=1.0))
