"""headstart's two stages, timed under a budget on the whole table, or on a sample and scaled to the whole table."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...cache.reader import open_cache
from ..encoders.files import EncoderFiles
from ..progress import Event, Step
from ..runs.run import read_run
from ..settings import ExtractSettings, SpeedupSettings, TrainSettings
from ..units import duration
from .extrapolate import Spread, scale

_LEAST_FACTOR = 4
"""A timed sample has at least so many times the rows of the few that show how long a stage takes to start."""
_SHARED = ["encoder", "revision", "text_column", "label_column", "max_length", "device", "skip_bad_rows"]
_SHARED += ["allow_pickled_weights"]
"""Settings of the measurement that `extract` has too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Distinct texts drawn at random from a table, and the label of each."""

    texts: list[str]
    labels: list[str]
    names: tuple[str, ...]  # of all labels
    few: int  # both stages can run on so many of the first texts: these contain several of every label
    table: str  # its path
    table_rows: int
    table_texts: int  # distinct texts of the table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """What all measurements share: the settings, the encoder, the deadline, and headstart's two commands."""

    settings: SpeedupSettings
    files: EncoderFiles
    device: torch.device
    scratch: Path  # a folder for caches and runs
    deadline: float  # on `time.perf_counter`
    on_step: Callable[[str], None]  # called again and again with what is being measured
    extract_command: Callable[..., Path]  # `extract`
    train_command: Callable[..., Path]  # `train_head`

    def left(self) -> float:
        """Return the seconds until the deadline, at least 0."""
        return max(self.deadline - time.perf_counter(), 0.0)

    def extract(self, name: str, table: Any, labels: list[str] | None = None, **changes: Any) -> tuple[Path, float]:
        """Extract a table, or texts with labels, with changes to the default settings; return the cache and seconds."""
        chosen = ExtractSettings(**{**{name: getattr(self.settings, name) for name in _SHARED}, **changes})
        out, started = self.scratch / name, time.perf_counter()
        self.extract_command(table, out, chosen, labels=labels, overwrite=True, report=self._relay)
        return out, time.perf_counter() - started

    def train(self, cache: Path, *, test: Path | None = None, **changes: Any) -> tuple[Path, float]:
        """Train and test a head with changes to the default settings; return the run and seconds."""
        device = "cpu" if self.settings.device == "mps" else self.settings.device  # heads do not train on MPS
        out, started = self.scratch / "run", time.perf_counter()
        self.train_command(cache, out, TrainSettings(device=device, **changes), test=test, overwrite=True)
        return out, time.perf_counter() - started

    def _relay(self, event: Event) -> None:
        if isinstance(event, Step):  # a note would be about a scratch file
            total = f" of {event.total:,}" if event.total else ""
            self.on_step(f"{event.phase}, {event.done:,}{total} {event.unit}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Seconds of the two stages, for the whole table."""

    rows: int = 0  # that were extracted in a repeat
    whole: bool = False  # these are the whole table, and nothing was scaled
    extract: Spread | None = None  # with loading the encoder
    extract_start: float | None = None  # of a few rows; not scaled
    epoch: Spread | None = None  # of `train_head`
    experiment: Spread | None = None  # a run of `train_head`: opening and checking the cache, the epochs, the test
    default_epochs: int = TrainSettings().epochs
    default_experiment: float | None = None  # a run of so many epochs
    not_run: str | None = None  # why there are no times


def measure_stages(measurement: Measurement, sample: Sample, share: float) -> StageTimes:
    """Time both stages in a share of the budget, in seconds."""
    settings, few = measurement.settings, min(sample.few, len(sample.texts))

    def train(cache: Path) -> tuple[float, float]:
        """Return the seconds of an epoch over the whole table, and of everything else in a training run."""
        path, seconds = measurement.train(cache, epochs=settings.epochs)
        run = read_run(path)
        return run["epoch_seconds"] * sample.table_rows / run["rows"]["train"], seconds - run["fit_seconds"]

    for _ in range(2):  # the first time includes the import of libraries, which is not timed for the program either
        deadline = time.perf_counter() + share
        cache, start = measurement.extract("few.h5", sample.texts[:few], sample.labels[:few])
        _, few_other = train(cache)
    record = open_cache(cache).record
    per_text = record["encode_seconds"] / record["distinct_texts"]
    repeats, rows = plan(sample, settings.repeats, left=deadline - time.perf_counter(), start=start, per_text=per_text)
    if not rows:
        needed = duration(start + per_text * _LEAST_FACTOR * few)
        return StageTimes(not_run=f"a sample takes {needed}, and its share of the budget was {duration(share)}")
    whole = rows == sample.table_rows
    # The few rows are in the start, which is not scaled.
    more_texts, more_rows = ((size - few) / max(rows - few, 1) for size in (sample.table_texts, sample.table_rows))
    table: tuple[Any, ...] = (sample.table,) if whole else (sample.texts[:rows], sample.labels[:rows])
    extracts: list[float] = []
    seconds = 0.0
    while len(extracts) < repeats and (not extracts or time.perf_counter() + seconds <= deadline):
        cache, seconds = measurement.extract("sample.h5", *table)
        extracts.append(seconds if whole else scale(seconds, start=start, factor=more_texts))
    epochs, experiments = [], []
    for _ in range(settings.repeats):
        epoch, other = train(cache)
        epochs.append(epoch)
        other = other if whole else scale(other, start=few_other, factor=more_rows)
        experiments.append(other + settings.epochs * epoch)
    epoch_spread, experiment = Spread.of(epochs), Spread.of(experiments)
    return StageTimes(
        rows=rows,
        whole=whole,
        extract=Spread.of(extracts),
        extract_start=start,
        epoch=epoch_spread,
        experiment=experiment,
        default_experiment=experiment.median + (StageTimes.default_epochs - settings.epochs) * epoch_spread.median,
    )


def plan(sample: Sample, most: int, *, left: float, start: float, per_text: float) -> tuple[int, int]:
    """Choose how many repeats of `extract` to run, ``most`` at most, and on how many rows; (0, 0) where none fits.

    The whole table, if it fits once. Otherwise a sample for every repeat, or fewer repeats if that leaves too few rows.
    """
    whole = start + per_text * sample.table_texts
    if whole <= left:
        return max(1, min(most, int(left / whole))), sample.table_rows
    for repeats in range(most, 0, -1):
        rows = min(int((left / repeats - start) / per_text), len(sample.texts))
        if rows >= min(_LEAST_FACTOR * sample.few, len(sample.texts)):
            return repeats, rows
    return 0, 0
