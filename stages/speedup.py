"""The speedup, measured: the practitioner's program rung by rung, then the two stages, on the user's machine and rows.

Everything is run on a sample of the rows within a budget, and scaled to the whole table; what did not fit is not
guessed. ``speedup_ladder`` runs the program (``speedup_process``: in processes of its own), ``speedup_stages`` the two
stages, ``speedup_quality`` compares accuracy, ``speedup_report`` and ``speedup_picture`` show it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..cache.errors import TableError
from ..cache.hashing import hash_keys
from ..cache.layout import storage_errors
from .baseline.extrapolate import Spread, paid_off_after, total
from .baseline.ladder import Ladder, RungResult
from .baseline.picture import draw
from .baseline.process import program_process
from .baseline.program import Program
from .baseline.quality import QualityResult, compare_quality
from .baseline.report import SPEEDUP, markdown
from .baseline.rungs import Rung
from .baseline.stages import Draw, StagesResult, measure_stages
from .devices import choose_device, choose_precision, machine
from .encoders.encoder import VERSIONS
from .encoders.files import EncoderFiles, find_encoder
from .progress import Event, Note, Report, Step, silent
from .settings import Precision, SpeedupSettings
from .tables.scan import TableScan, read_windows, scan_table
from .tables.table import Table, open_table

MARKDOWN_FILE, PICTURE_FILE = "speedup.md", "speedup.png"
_STAGES_SHARE, _LADDER_SHARE = 0.25, 0.4
"""Of the budget; accuracy gets the rest."""
_POOL_ROWS = 16_384
"""Rows that are kept in memory to draw from. Sorted by length, so many hardly need padding, as in a whole table."""
_ROWS_OF_A_CLASS = 5
"""Of each class, so many distinct texts come first, so that the few first rows can be divided and trained on."""
_FEW_ROWS = 64
Indices = npt.NDArray[np.int64]


def speedup(
    table: str | Path,
    out: str | Path,
    settings: SpeedupSettings | None = None,
    *,
    overwrite: bool = False,
    wait: bool = False,
    report: Report = silent,
) -> Path:
    """Measure what the two stages save, against the program that they stand in for.

    Args:
        table: A CSV, TSV, JSON lines or Parquet file, or a folder of one of them, with labels.
        out: The folder to write.
        settings: See `SpeedupSettings`.
        overwrite: Replace the report at ``out``.
        wait: Where another run is writing ``out``, wait until it is done.
        report: Where progress and notes go.

    Returns:
        The folder: ``speedup.json``, ``speedup.md`` and, where matplotlib is installed, ``speedup.png``.

    Raises:
        TableError: the table cannot be read, or its labels cannot be trained on.
        EncoderError: the encoder cannot be found or read.
        OutputExistsError: ``out`` is there already.
        BusyError: another run is writing ``out``, and ``wait`` is False.
        StorageError: the machine cannot read or write.
    """
    started = time.perf_counter()
    settings, out = settings or SpeedupSettings(), Path(out)
    with SPEEDUP.held(out, overwrite=overwrite, wait=wait, report=report):
        source = open_table(
            table,
            text_column=settings.text_column,
            label_column=settings.label_column,
            skip_bad_rows=settings.skip_bad_rows,
        )
        device = choose_device(settings.device)
        files = find_encoder(
            settings.encoder, revision=settings.revision, allow_pickled_weights=settings.allow_pickled_weights
        )
        scan = scan_table(source, report)
        measuring = _Measuring(settings, files, device, started=started, report=report)
        with SPEEDUP.new(out, overwrite=overwrite) as folder, storage_errors("cannot write what is measured"):
            with tempfile.TemporaryDirectory(prefix="headstart-") as scratch:
                found = measuring.measure(source, scan, Path(scratch))
            fields = {
                "headstart": version("headstart"),
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "settings": dataclasses.asdict(settings),
                "encoder": {"name": files.name, "revision": files.revision},
                "table": {"source": source.source, "rows": scan.rows, "distinct_texts": scan.distinct_texts},
                **found,
                "machine": machine(device),
                "versions": VERSIONS,
                "seconds": time.perf_counter() - started,
            }
            SPEEDUP.write(folder, fields)
            (folder / MARKDOWN_FILE).write_text(markdown(fields), encoding="utf-8")
            if not draw(folder / PICTURE_FILE, fields):
                report(Note(f"{PICTURE_FILE} was not drawn: matplotlib is missing; pip install 'headstart[report]'"))
        return out


class _Measuring:
    """The measurements, one after the other, each with its share of the budget."""

    def __init__(
        self, settings: SpeedupSettings, files: EncoderFiles, device: torch.device, *, started: float, report: Report
    ) -> None:
        self._settings, self._files, self._device, self._report = settings, files, device, report
        self._deadline = started + settings.budget
        self._detail = ""

    def measure(self, source: Table, scan: TableScan, scratch: Path) -> dict[str, Any]:
        """Measure everything: what `speedup` writes of it."""
        settings = self._settings
        pool, draw = draw_rows(source, scan, settings)
        self._step("the two stages")
        share = min(_STAGES_SHARE * settings.budget, self._deadline - time.perf_counter())
        stages = measure_stages(draw, settings, scratch, share=share, report=self._relay)
        names = scan.label_names or ()
        self._step("loading the program")
        make = functools.partial(
            Program,
            self._files,
            pool[settings.text_column],
            [names.index(label) for label in pool[settings.label_column]],
            classes=len(names),
            max_length=settings.max_length,
            device=self._device,
        )
        began = time.perf_counter()
        modules = [type(make().model.bert).__module__]
        load_seconds = time.perf_counter() - began
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # other processes need it now
        with contextlib.suppress(MemoryError), program_process(make, modules, lambda: self._step(self._detail)):
            pass  # the first of these processes takes seconds, which are no rung's; if it cannot be, each rung says so
        rungs = self._climb(make, modules, scan.rows)
        quality = self._compare(draw, names, scratch)
        return {
            "precision": dict(zip(("chosen", "reason"), choose_precision(Precision.AUTO, self._device), strict=True)),
            "program_start": load_seconds,
            "rungs": [dataclasses.asdict(rung) for rung in rungs],
            "stages": dataclasses.asdict(stages),
            "totals": totals(rungs, stages, settings, program_start=load_seconds),
            "quality": {**dataclasses.asdict(quality), "agree": quality.agree},
        }

    def _compare(self, draw: Draw, names: tuple[str, ...], scratch: Path) -> QualityResult:
        if not self._settings.quality:
            return QualityResult(not_run="accuracy was not compared, as asked for")
        return compare_quality(
            draw,
            names,
            self._files,
            self._settings,
            scratch=scratch,
            device=self._device,
            deadline=self._deadline,
            on_step=self._step,
        )

    def _climb(self, make: Callable[[], Program], modules: Sequence[str], table_rows: int) -> tuple[RungResult, ...]:
        settings = self._settings
        ladder = Ladder(
            make(),
            functools.partial(program_process, make, modules),
            table_rows=table_rows,
            half=Precision.FLOAT16 if self._device.type == "cuda" else Precision.BFLOAT16,
            half_pays=choose_precision(Precision.AUTO, self._device)[0] is not Precision.FLOAT32,
            repeats=settings.repeats,
            on_rung=self._step,
            on_batch=lambda: self._step(self._detail),
        )
        ours = time.perf_counter() + _LADDER_SHARE * settings.budget
        return ladder.climb(list(Rung), min(ours, self._deadline) if settings.quality else self._deadline)

    def _relay(self, event: Event) -> None:
        """Pass a stage's own steps on as details of ours; its notes are of scratch files."""
        if isinstance(event, Step):
            of = f" of {event.total:,}" if event.total else ""
            self._step(f"{event.phase}, {event.done:,}{of} {event.unit}")

    def _step(self, detail: str) -> None:
        self._detail = detail
        seconds = round(self._settings.budget - (self._deadline - time.perf_counter()))
        self._report(Step("measuring", seconds, round(self._settings.budget), "seconds of the budget", detail=detail))


def draw_rows(source: Table, scan: TableScan, settings: SpeedupSettings) -> tuple[dict[str, list[str]], Draw]:
    """Draw rows at random for the program, and distinct texts for the two stages.

    Raises:
        TableError: a label has no text of its own, or there are too many, or the table changed since it was surveyed.
    """
    assert scan.labels is not None and scan.label_names is not None
    rng = np.random.default_rng(settings.sample)
    pool = rng.permutation(scan.rows)[:_POOL_ROWS]
    _, first = np.unique(hash_keys(scan.text_hashes), return_index=True)
    if lost := set(range(len(scan.label_names))) - set(scan.labels[first].tolist()):
        raise TableError(
            f"{source.source}: each text of the label {scan.label_names[min(lost)]!r} stands before with another "
            "label; mend those rows to measure on this table"
        )
    distinct, few = _classes_first(rng.permutation(first), scan.labels)
    distinct = distinct[:_POOL_ROWS]
    if few > len(distinct):
        raise TableError(f"{source.source} has {len(scan.label_names):,} labels: too many to measure on a sample")
    wanted = np.unique(np.concatenate([pool, distinct]))
    texts: dict[int, str] = {}
    for place, rows in read_windows(source, scan, 4096):
        for row in wanted[np.searchsorted(wanted, place.start) : np.searchsorted(wanted, place.stop)].tolist():
            texts[row] = rows.texts[row - place.start]

    def columns(rows: Indices) -> dict[str, list[str]]:
        assert scan.labels is not None and scan.label_names is not None
        return {
            settings.text_column: [texts[row] for row in rows.tolist()],
            settings.label_column: [scan.label_names[label] for label in scan.labels[rows]],
        }

    drawn = Draw(
        table=source.source,
        columns=columns(distinct),
        few=max(few, _FEW_ROWS),
        table_rows=scan.rows,
        table_texts=scan.distinct_texts,
    )
    return columns(pool), drawn


def _classes_first(rows: Indices, labels: npt.NDArray[np.int64]) -> tuple[Indices, int]:
    """Put a few rows of every class in front; also how many these are."""
    order = np.argsort(labels[rows], kind="stable")
    starts = np.searchsorted(labels[rows][order], labels[rows])
    place = np.empty(len(rows), np.int64)  # each row's number among the rows of its class
    place[order] = np.arange(len(rows))
    front = place - starts < _ROWS_OF_A_CLASS
    return np.concatenate([rows[front], rows[~front]]), int(front.sum())


def totals(
    rungs: tuple[RungResult, ...], stages: StagesResult, settings: SpeedupSettings, *, program_start: float
) -> list[dict[str, Any]]:
    """What all experiments take in each way, and when extracting has paid for itself against it.

    Returns:
        For each way: ``way``, ``epochs`` of an experiment, ``seconds`` of all of them, ``paid_off_after``: the epoch at
        whose end extracting, and all that one experiment takes besides, has paid for itself, and
        ``ahead_with_cache_after``: the same with the cache there already. None for never, or where it is not known.
    """
    experiments, found = settings.experiments, []
    for rung in rungs:
        if rung.epoch is None:
            continue
        epoch = rung.epoch.median
        seconds = total(once=0, start=program_start, epoch=epoch, epochs=settings.epochs, experiments=experiments)
        line: dict[str, Any] = {"way": rung.rung.value, "epochs": settings.epochs, "seconds": seconds}
        for name, once in (("paid_off_after", stages.extract), ("ahead_with_cache_after", Spread.of([0.0]))):
            line[name] = None
            if once is not None and stages.epoch is not None and stages.experiment is not None:
                besides = stages.experiment.median - settings.epochs * stages.epoch.median - program_start
                line[name] = paid_off_after(once=once.median + besides, epoch=stages.epoch.median, other_epoch=epoch)
        found.append(line)
    if stages.extract is not None and stages.experiment is not None and stages.default_experiment is not None:
        extract, experiment = stages.extract.median, stages.experiment.median
        for way, epochs, seconds in (
            ("headstart", settings.epochs, extract + experiments * experiment),
            ("headstart, the cache there already", settings.epochs, experiments * experiment),
            ("headstart, its own epochs", stages.default_epochs, extract + experiments * stages.default_experiment),
        ):
            found.append({"way": way, "epochs": epochs, "seconds": seconds})
    return found
