"""Measure the speedup: the practitioner's program, rung by rung, beside headstart's two stages, on the user's machine.

All of it runs on a sample within a budget, and is scaled to the whole table. What does not fit is left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.errors import TableError, storage_errors
from ..cache.hashing import hash_keys
from .baseline.ladder import Ladder, Measurement, Rung, RungResult, Sample, StageTimes, measure_stages
from .baseline.process import in_new_process
from .baseline.program import Program
from .baseline.quality import QualityResult, compare_quality
from .baseline.report import SPEEDUP, draw, markdown
from .devices import choose_device, choose_precision
from .encoders.encoder import VERSIONS
from .encoders.files import find_encoder
from .extract import extract
from .progress import Action, Note, Outcome, Report, Step, in_notebooks
from .provenance import provenance
from .settings import Precision, SpeedupSettings, Task, settings_from, takes
from .splits.relabel import copy_numbers
from .tables.labels import LabelRules
from .tables.scan import TableScan, read_windows, scan_table
from .tables.table import Table, open_table
from .train_head import train_head

MARKDOWN_FILE, PICTURE_FILE = "speedup.md", "speedup.png"
_STAGES_SHARE, _LADDER_SHARE = 0.25, 0.4  # of the budget; the comparison of accuracy gets the rest
_SAMPLE_ROWS = 16_384  # kept in memory; so many, sorted by length, hardly need padding, as in a whole table
_TEXTS_PER_CLASS, _FEW_TEXTS = 5, 64  # a sample begins with so many of every class, and runs on so many at least


@takes(SpeedupSettings)
def speedup(
    table: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: SpeedupSettings | None = None,
    *,
    overwrite: bool = False,
    wait: bool = False,
    report: Report = in_notebooks,
    **options: Any,
) -> Path:
    """Measure how much faster the two stages are than the program that they replace.

    Args:
        table: A CSV, TSV, JSON lines or Parquet file, or a folder of one of them, with labels.
        out: The folder to write.
        settings: See `SpeedupSettings`.
        overwrite, wait, report: As for `train_head`.
        options: Settings by name, instead of ``settings``.

    Returns:
        The folder: ``speedup.json``, ``speedup.md`` and, where matplotlib is installed, ``speedup.png``.

    Raises:
        As `extract` and `train_head`.
    """
    started = time.perf_counter()
    settings, out = settings_from(SpeedupSettings, settings, options), Path(out)

    def step(detail: str) -> None:
        spent = round(time.perf_counter() - started)
        report(Step("measuring", spent, round(settings.budget), "seconds of the budget", detail=detail))

    with SPEEDUP.held(out, overwrite=overwrite, wait=wait, report=report):
        source = open_table(
            table,
            text_column=settings.text_column,
            label_column=settings.label_column,
            label_rules=LabelRules(Task.CLASSES),
            skip_bad_rows=settings.skip_bad_rows,
            settings=settings,
        )
        device, pickled = choose_device(settings.device), settings.allow_pickled_weights
        files = find_encoder(settings.encoder, revision=settings.revision, allow_pickled_weights=pickled)
        scan = scan_table(source, report)
        with SPEEDUP.new(out, overwrite=overwrite) as folder, storage_errors("cannot write measurements"):
            with tempfile.TemporaryDirectory(prefix="headstart-") as scratch:
                measurement = Measurement(
                    settings=settings,
                    files=files,
                    device=device,
                    scratch=Path(scratch),
                    deadline=started + settings.budget,
                    on_step=step,
                    extract_command=extract,
                    train_command=train_head,
                )
                measured = _measure(measurement, *draw_rows(source, scan, settings))
            fields = {
                "settings": dataclasses.asdict(settings),
                "encoder": {"name": files.name, "revision": files.revision},
                "table": {"source": source.source, "rows": scan.rows, "distinct_texts": scan.distinct_texts},
                **measured,
            }
            fields = provenance(device, fields, versions=VERSIONS)
            fields["seconds"] = time.perf_counter() - started
            SPEEDUP.write(folder, fields)
            (folder / MARKDOWN_FILE).write_text(markdown(fields), encoding="utf-8")
            if not draw(folder / PICTURE_FILE, fields):
                report(Note(f"{PICTURE_FILE} was not drawn: matplotlib is missing; pip install 'headstart[report]'"))
        report(Outcome(command="speedup", output=out, action=Action.MADE, counts={"rows": scan.rows}))
        return out


def _measure(measurement: Measurement, texts: list[str], labels: list[int], sample: Sample) -> dict[str, Any]:
    """Time headstart on the sample and the program on the texts, compare accuracy; return fields of the report."""
    settings, device = measurement.settings, measurement.device
    measurement.on_step("the two stages")
    stages = measure_stages(measurement, sample, min(_STAGES_SHARE * settings.budget, measurement.left()))
    measurement.on_step("loading the program")
    limits = {"classes": len(sample.names), "max_length": settings.max_length}
    make = functools.partial(Program, measurement.files, texts, labels, device=device, **limits)
    began = time.perf_counter()
    architecture = type(make().model.bert).__module__
    program_start = time.perf_counter() - began
    apart = functools.partial(in_new_process, modules=[Ladder.__module__, architecture])
    with contextlib.suppress(MemoryError):  # each rung reports it
        apart(int, on_tick=lambda: measurement.on_step("loading the program"))  # imports modules once, for all rungs
    precision, reason = choose_precision(Precision.AUTO, device)
    ladder = Ladder(measurement=measurement, make=make, apart=apart, precision=precision, table_rows=sample.table_rows)
    share = min(_LADDER_SHARE * settings.budget, measurement.left()) if settings.quality else measurement.left()
    rungs = ladder.climb(list(Rung), time.perf_counter() + share)
    not_compared = QualityResult(not_run="accuracy was not compared, as asked for")
    quality = compare_quality(measurement, sample) if settings.quality else not_compared
    return {
        "precision": {"chosen": precision, "reason": reason},
        "program_start": program_start,
        "rungs": [dataclasses.asdict(rung) for rung in rungs],
        "stages": dataclasses.asdict(stages),
        "totals": totals(rungs, stages, settings, program_start=program_start),
        "quality": {**dataclasses.asdict(quality), "agree": quality.agree},
    }


def draw_rows(source: Table, scan: TableScan, settings: SpeedupSettings) -> tuple[list[str], list[int], Sample]:
    """Draw rows at random for the program (texts and class numbers), and distinct texts for headstart.

    Raises:
        TableError: a label has no text of its own or one only, or there are too many labels, or the table has changed.
    """
    assert scan.labels is not None and scan.label_names is not None
    labels, names = scan.labels, scan.label_names
    rng = np.random.default_rng(settings.sample)
    rows = rng.permutation(scan.rows)[:_SAMPLE_ROWS].tolist()
    _, first = np.unique(hash_keys(scan.text_hashes), return_index=True)
    if lost := set(range(len(names))) - set(labels[first].tolist()):
        where = f"{source.source}: each text of the label {names[min(lost)]!r} stands before with another label"
        raise TableError(f"{where}; correct those rows to measure on this table")
    texts_of = np.bincount(labels[first], minlength=len(names))
    if texts_of.min() < 2:
        where = f"{source.source}: the label {names[int(texts_of.argmin())]!r} has one distinct text only"
        raise TableError(f"{where}, which cannot be both trained on and tested; give it more rows, or remove it")
    drawn = rng.permutation(first)
    number = copy_numbers(labels[drawn])  # of each text among the texts of its class
    few = int((number < _TEXTS_PER_CLASS).sum())
    distinct = drawn[np.argsort(number >= _TEXTS_PER_CLASS, kind="stable")][:_SAMPLE_ROWS].tolist()
    if few > len(distinct):
        raise TableError(f"{source.source} has {len(names):,} labels: too many to measure on a sample")
    texts = dict.fromkeys((*rows, *distinct), "")
    for place, window in read_windows(source, scan, 4096):
        texts |= {row: text for row, text in enumerate(window.texts, place.start) if row in texts}
    sample = Sample(
        texts=[texts[row] for row in distinct],
        labels=[names[label] for label in labels[distinct]],
        names=names,
        few=max(few, _FEW_TEXTS),
        table=source.source,
        table_rows=scan.rows,
        table_texts=scan.distinct_texts,
    )
    return [texts[row] for row in rows], labels[rows].tolist(), sample


def totals(
    rungs: tuple[RungResult, ...], stages: StageTimes, settings: SpeedupSettings, *, program_start: float
) -> list[dict[str, Any]]:
    """Return for each way ``way``, ``epochs`` of an experiment, and ``seconds`` of all experiments.

    For the program also ``paid_off_after``, the epoch of an experiment at whose end headstart has taken no longer, with
    `extract`, and ``ahead_with_cache_after``, the same without `extract`; None for never, or where it is not known.
    """
    experiments, epochs = settings.experiments, settings.epochs
    lines: list[dict[str, Any]] = []
    for way, other in [(rung.rung.value, rung.epoch.median) for rung in rungs if rung.epoch]:
        line: dict[str, Any] = {"way": way, "epochs": epochs, "seconds": experiments * (program_start + epochs * other)}
        line |= {"paid_off_after": None, "ahead_with_cache_after": None}
        if stages.extract and stages.epoch and stages.experiment:
            more = stages.experiment.median - epochs * stages.epoch.median - program_start  # apart from epochs
            paid = functools.partial(paid_off_after, epoch=stages.epoch.median, other_epoch=other)
            line["paid_off_after"] = paid(once=stages.extract.median + more)
            line["ahead_with_cache_after"] = paid(once=more)
        lines.append(line)
    if stages.extract and stages.experiment and stages.default_experiment:
        once, runs = stages.extract.median, experiments * stages.experiment.median
        default = once + experiments * stages.default_experiment
        lines.append({"way": "headstart", "epochs": epochs, "seconds": once + runs})
        lines.append({"way": "headstart, the cache there already", "epochs": epochs, "seconds": runs})
        lines.append({"way": "headstart, its own epochs", "epochs": stages.default_epochs, "seconds": default})
    return lines


def paid_off_after(*, once: float, epoch: float, other_epoch: float) -> int | None:
    """Return the first epoch, from 1, at whose end this way has taken no longer than the other; None for never.

    ``once`` is what this way takes more than the other apart from epochs; it is below 0 where this way takes less.
    """
    if epoch >= other_epoch:
        return 1 if once + epoch <= other_epoch else None
    return max(1, math.ceil(once / (other_epoch - epoch)))
