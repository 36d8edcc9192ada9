"""The two stages as rungs of the ladder: the real `extract` and the real `train_head`, timed under a budget."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from ...cache.reader import open_cache
from ..extract import extract
from ..inspect import inspect_path
from ..progress import Report, silent
from ..settings import ExtractSettings, SpeedupSettings, TrainSettings
from ..train_head import train_head
from ..units import duration
from .extrapolate import Spread, scale

_LEAST_FACTOR = 4
"""A sample has so many times the rows of the few that tell the start from the rest, at least."""
Columns = dict[str, list[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagesResult:
    """What the two stages came to, for the whole table.

    Attributes:
        rows: Rows that were extracted in a repeat.
        whole: Whether these were the whole table, so that nothing was scaled.
        extract: Seconds of the whole of stage one, loading the encoder included.
        extract_start: What stage one takes for a handful of rows: not scaled.
        epoch: Seconds of an epoch of stage two.
        experiment: Seconds of a whole training run: its epochs, and opening and checking the cache, and the test.
        default_epochs: How many epochs stage two trains for of itself.
        default_experiment: Seconds of a run of so many.
        not_run: Why it was not run, or None.
    """

    rows: int
    whole: bool
    extract: Spread | None = None
    extract_start: float | None = None
    epoch: Spread | None = None
    experiment: Spread | None = None
    default_epochs: int = TrainSettings().epochs
    default_experiment: float | None = None
    not_run: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """Rows drawn for stage one, and the table that they stand for.

    Attributes:
        table: Where the whole table is.
        columns: Texts and labels of the distinct texts that were drawn; the first few have rows of every class.
        few: How many of them are enough to run both stages.
        table_rows: Rows of the whole table.
        table_texts: Distinct texts of the whole table.
    """

    table: Any
    columns: Columns
    few: int
    table_rows: int
    table_texts: int

    def first(self, rows: int) -> Columns:
        """The first rows."""
        return {name: values[:rows] for name, values in self.columns.items()}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def measure_stages(
    draw: Draw, settings: SpeedupSettings, scratch: Path, *, share: float, report: Report = silent
) -> StagesResult:
    """Time both stages on the whole table where it fits the share of the budget, otherwise on a sample.

    What is loaded once in a process (Python's libraries) is left out, as it is of the program.

    Args:
        draw: The rows.
        settings: How to extract, how many epochs to train for, and how many repeats.
        scratch: A folder for caches and runs.
        share: Seconds that it may all take.
        report: Where the stages' own progress goes.
    """
    few = min(draw.few, len(draw))
    trained = _Trainings(settings, scratch)
    _, cache = _extract(draw.first(few), scratch / "few.h5", settings, report)
    trained.run(cache)  # what a process loads once is no part of any way
    deadline = time.perf_counter() + share
    start, cache = _extract(draw.first(few), scratch / "few.h5", settings, report)
    few_experiment = trained.run(cache)
    record = open_cache(cache).record
    per_text = record["encode_seconds"] / record["distinct_texts"]
    left = deadline - time.perf_counter()
    repeats, rows = _plan(draw, settings.repeats, left=left, start=start, per_text=per_text)
    if not rows:
        needed = start + per_text * _LEAST_FACTOR * few
        why = f"a sample takes {duration(needed)}, and its share of the budget was {duration(share)}"
        return StagesResult(rows=0, whole=False, not_run=why)
    whole = rows == draw.table_rows
    table: Any = draw.table if whole else draw.first(rows)
    more_texts = (draw.table_texts - few) / max(rows - few, 1)  # the few rows stand in what is not scaled
    more_rows = (draw.table_rows - few) / max(rows - few, 1)
    extracts: list[float] = []
    experiments: list[float] = []
    epochs: list[float] = []
    seconds = 0.0
    for number in range(settings.repeats):
        if number < repeats and (not extracts or time.perf_counter() + seconds <= deadline):
            seconds, cache = _extract(table, scratch / "sample.h5", settings, report)
            extracts.append(seconds if whole else scale(seconds, start=start, factor=more_texts))
        run = trained.run(cache)
        epochs.append(run.epoch_seconds * draw.table_rows / run.train_rows)
        other = run.other_seconds
        if not whole:
            other = scale(other, start=few_experiment.other_seconds, factor=more_rows)
        experiments.append(other + settings.epochs * epochs[-1])
    experiment, epoch = Spread.of(experiments), Spread.of(epochs)
    more = TrainSettings().epochs - settings.epochs  # may be below zero
    return StagesResult(
        rows=rows,
        whole=whole,
        extract=Spread.of(extracts),
        extract_start=start,
        epoch=epoch,
        experiment=experiment,
        default_experiment=experiment.median + more * epoch.median,
    )


def _plan(draw: Draw, most_repeats: int, *, left: float, start: float, per_text: float) -> tuple[int, int]:
    """How many repeats, and of how many rows: of the whole table if once fits, else of as many as let all repeats, or
    as many of them as leave enough rows."""
    whole = start + per_text * draw.table_texts
    if whole <= left:
        return max(1, min(most_repeats, int(left / whole))), draw.table_rows
    for repeats in range(most_repeats, 0, -1):
        rows = min(int((left / repeats - start) / per_text), len(draw))
        if rows >= min(_LEAST_FACTOR * draw.few, len(draw)):
            return repeats, rows
    return 0, 0


def _extract(table: Any, out: Path, settings: SpeedupSettings, report: Report) -> tuple[float, Path]:
    """Run stage one with its own defaults."""
    chosen = extract_settings(settings)
    started = time.perf_counter()
    extract(table, out, chosen, overwrite=True, report=report)
    return time.perf_counter() - started, out


def extract_settings(settings: SpeedupSettings, **changes: Any) -> ExtractSettings:
    """Stage one's own defaults, for this encoder and this table."""
    given: dict[str, Any] = {
        "encoder": settings.encoder,
        "revision": settings.revision,
        "text_column": settings.text_column,
        "label_column": settings.label_column,
        "max_length": settings.max_length,
        "device": settings.device,
        "skip_bad_rows": settings.skip_bad_rows,
        "allow_pickled_weights": settings.allow_pickled_weights,
    }
    return ExtractSettings(**{**given, **changes})


def head_settings(settings: SpeedupSettings, **changes: Any) -> TrainSettings:
    """Stage two's own defaults; its heads do not train on MPS."""
    device = "cpu" if settings.device == "mps" else settings.device
    return TrainSettings(**{"device": device, **changes})


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run of stage two: seconds of an epoch, seconds of all that is not training, and rows that it trained on."""

    epoch_seconds: float
    other_seconds: float
    train_rows: int


class _Trainings:
    """Runs of stage two."""

    def __init__(self, settings: SpeedupSettings, scratch: Path) -> None:
        self._settings = head_settings(settings, epochs=settings.epochs)
        self._out = scratch / "run"

    def run(self, cache: Path) -> _Run:
        """Train and test a head."""
        started = time.perf_counter()
        train_head(cache, self._out, self._settings, overwrite=True)
        seconds = time.perf_counter() - started
        run = inspect_path(self._out)
        return _Run(run["epoch_seconds"], seconds - run["fit_seconds"], run["rows"]["train"])
