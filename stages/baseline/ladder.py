"""The program, timed on rung after rung, and headstart's two stages: under a budget, and scaled to the whole table."""

from __future__ import annotations

import dataclasses
import enum
import functools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...cache.reader import open_cache
from ..encoders.files import EncoderFiles
from ..encoders.memory import is_memory_full
from ..progress import Event, Step, silent
from ..runs.run import read_run
from ..settings import ExtractSettings, Precision, Solver, SpeedupSettings, TrainSettings
from ..units import duration
from .process import ProcessKilledError
from .program import Padding, Program, ProgramEpoch, ProgramSettings

RUN_NAME = "run"  # of the scratch folder's last training run
_LEAST_BATCHES = {Padding.FIXED: 2, Padding.BATCH: 6}  # of a repeat; batches sorted by length differ among themselves
_LEAST_FACTOR = 4  # a timed sample has at least so many times the rows of the few that show how long a start takes
_Batches = list[list[int]]
_Make = Callable[[], Program]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """A time in seconds, measured in several repeats: their median, the least, the greatest, and their number."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one value or more."""
        return cls(median=statistics.median(values), low=min(values), high=max(values), repeats=len(values))


def scale(seconds: float, *, start: float, factor: float) -> float:
    """Return the seconds of ``factor`` times the work: ``start`` counts once, and the rest grows with the work."""
    return start + max(seconds - start, 0.0) * factor


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
    train_command: Callable[..., object]  # `train_head`

    def left(self) -> float:
        """Return the seconds until the deadline, at least 0."""
        return max(self.deadline - time.perf_counter(), 0.0)

    def extract(self, name: str, table: Any, labels: list[str] | None = None, **changes: Any) -> tuple[Path, float]:
        """Extract a table, or texts with labels, with changes to the default settings; return the cache and seconds."""
        known = [field.name for field in dataclasses.fields(ExtractSettings) if hasattr(self.settings, field.name)]
        given = {setting: getattr(self.settings, setting) for setting in known}
        as_program = {"features": ("cls",), "prefix": "", "task": "classes"}  # it trains on the first token's states
        chosen = ExtractSettings(**{**as_program, **given, **changes})
        out, started = self.scratch / name, time.perf_counter()
        self.extract_command(table, out, chosen, labels=labels, overwrite=True, report=self._relay)
        return out, time.perf_counter() - started

    def train(self, cache: Path, *, test: Path | None = None, **changes: Any) -> tuple[dict[str, Any], float]:
        """Train and test a head with changes to the default settings; return ``run.json`` and seconds."""
        device = "cpu" if self.settings.device == "mps" else self.settings.device  # heads do not train on MPS
        out, started = self.scratch / RUN_NAME, time.perf_counter()
        self.train_command(
            cache, out, TrainSettings(device=device, **changes), test=test, overwrite=True, report=silent
        )
        seconds = time.perf_counter() - started
        return read_run(out), seconds

    def _relay(self, event: Event) -> None:
        if isinstance(event, Step):  # a note would be about a scratch file
            total = f" of {event.total:,}" if event.total else ""
            self.on_step(f"{event.phase}, {event.done:,}{total} {event.unit}")


class Rung(enum.StrEnum):
    """One piece of advice on how to train a classifier faster. A practitioner follows them in this order."""

    START = "encoder trained, batch 8"  # no advice yet: float32, and every text padded to the greatest length
    BATCH = "batch 16"
    PRECISION = "mixed precision"  # autocast, with a gradient scaler on CUDA
    FROZEN = "frozen encoder"  # only the head is trained; the encoder runs without gradients
    WORKERS = "4 workers"  # processes that tokenize during the training
    PINNED = "pinned memory"  # batches are copied to the device from page-locked memory
    SORTED = "sorted by length"  # a batch has texts of similar length; the frozen encoder has no dropout


def advice(device: torch.device) -> dict[Rung, dict[str, Any]]:
    """Return what each rung changes in `ProgramSettings`."""
    return {
        Rung.START: {},
        Rung.BATCH: {"batch_size": 16},
        Rung.PRECISION: {"precision": Precision.FLOAT16 if device.type == "cuda" else Precision.BFLOAT16},
        Rung.FROZEN: {"frozen": True},
        Rung.WORKERS: {"workers": 4},
        Rung.PINNED: {"pinned": True},
        Rung.SORTED: {"padding": Padding.BATCH, "noisy": False},
    }


@dataclasses.dataclass(kw_only=True)
class RungResult:
    """What was measured on a rung. Its fields are for the report; its other attributes serve while it is measured."""

    rung: Rung
    over: Rung | None  # the rung whose program it changes; None for the first, and where that program was not timed
    settings: ProgramSettings
    kept: bool  # the next rungs follow it too: it was faster than `over`, or is known to pay
    rows: int = 0  # of a repeat
    epoch: Spread | None = None  # over the whole table
    not_run: str | None = None  # why there is no `epoch`

    def __post_init__(self) -> None:
        self.batches: _Batches = []  # of each repeat
        self.factor = 1.0  # padded tokens of the whole table over those of the batches
        self.expected = 0.0  # seconds of one more repeat, its process included
        self.seconds: list[float] = []  # of each repeat, scaled to the whole table


@dataclasses.dataclass(kw_only=True)
class Ladder:
    """Times rungs in rounds, so that a disturbance of the machine slows all of them alike.

    In the first round, each rung is sized and timed. Advice that made the program slower is taken back before the next
    rung, as a practitioner does. Larger batches, freezing, and mixed precision on a device that has units for it are
    followed even where the budget could not time them, because the next rungs must be what a practitioner would run.
    """

    measurement: Measurement
    make: _Make  # the practitioner's program, on rows drawn at random from the table
    apart: Callable[..., Any]  # runs work in a process of its own, as `in_new_process` does
    precision: Precision  # that suits the device: float32, unless it has units for half precision
    table_rows: int

    def climb(self, rungs: Sequence[Rung], deadline: float) -> tuple[RungResult, ...]:
        """Measure rungs in order; each has an equal share of the time until ``deadline``, on `time.perf_counter`."""
        self._climbed: list[RungResult] = []
        self._repeats, self._deadline = self.measurement.settings.repeats, deadline
        self._program = self.make()  # divides rows into batches
        torch.cuda.empty_cache()  # for the program's own processes
        for number, rung in enumerate(rungs):
            to_come = sum(max(self._repeats - len(timing.seconds), 0) * timing.expected for timing in self._climbed)
            self._climb_one(rung, (deadline - time.perf_counter() - to_come) / (len(rungs) - number))
        for number in range(1, self._repeats):
            for timing in self._climbed:
                if 0 < len(timing.seconds) <= number and time.perf_counter() + timing.expected <= deadline:
                    self._time_again(timing)
        for timing in self._climbed:
            timing.epoch = Spread.of(timing.seconds) if timing.seconds else None
        return tuple(self._climbed)

    def _climb_one(self, rung: Rung, share: float) -> None:
        """Time a rung once, on as many batches as let all its repeats fit its share; then keep it or take it back."""
        last = next((timing for timing in reversed(self._climbed) if timing.kept), None)
        changes = advice(self.measurement.device)[rung]
        settings = dataclasses.replace(last.settings if last else ProgramSettings(), **changes)
        pays = rung in (Rung.BATCH, Rung.FROZEN) or (rung is Rung.PRECISION and self.precision is not Precision.FLOAT32)
        over = last.rung if last and last.seconds else None
        timing = RungResult(rung=rung, over=over, settings=settings, kept=pays)
        self._climbed.append(timing)
        answer: Any = "its share of the budget was spent before it"
        if share > 0:
            batches = self._program.batches(settings, np.arange(len(self._program.texts)))
            sized = functools.partial(_first_repeat, share=share, repeats=self._repeats, began=time.time())
            answer = self._run(timing, functools.partial(sized, self.make, settings, batches))
        if isinstance(answer, str):
            timing.not_run = answer
            return
        timing.batches, warm_up, epoch = answer
        whole, part = (self._program.padded_tokens(settings, some) for some in (batches, timing.batches))
        timing.factor = whole / part * self.table_rows / len(self._program.texts)
        timing.expected = warm_up + epoch.seconds
        timing.seconds.append(scale(epoch.seconds, start=epoch.start, factor=timing.factor))
        timing.rows = sum(map(len, timing.batches))
        if last and last.seconds and rung is not Rung.FROZEN:
            timing.kept = self._is_faster(timing, last)
        else:  # without a rung to compare with, nothing shows that workers or pinned memory help
            timing.kept = rung not in (Rung.WORKERS, Rung.PINNED)

    def _is_faster(self, timing: RungResult, last: RungResult) -> bool:
        """Compare the least times, because disturbances only slow down. What seems slower is timed again beside it."""
        fits = time.perf_counter() + last.expected + timing.expected <= self._deadline
        if min(timing.seconds) >= min(last.seconds) and self._repeats > 1 and fits:
            self._time_again(last)
            self._time_again(timing)
        return min(timing.seconds) < min(last.seconds)

    def _time_again(self, timing: RungResult) -> None:
        """Time a rung once more. Where that fails, its earlier repeats stay."""
        began, repeat = time.perf_counter(), len(timing.seconds)
        work = functools.partial(_next_repeat, self.make, timing.settings, timing.batches, repeat)
        epoch = self._run(timing, work)
        if not isinstance(epoch, str):
            timing.seconds.append(scale(epoch.seconds, start=epoch.start, factor=timing.factor))
            timing.expected = min(timing.expected, time.perf_counter() - began)  # a disturbance need not come again

    def _run(self, timing: RungResult, work: Callable[[], Any]) -> Any:
        """Run work in a process of its own; return its result, or as a str why the program cannot run like this."""
        step = functools.partial(self.measurement.on_step, f"{timing.rung}, round {len(timing.seconds) + 1}")
        step()
        try:
            return self.apart(work, on_tick=step)
        except (OSError, RuntimeError, MemoryError) as error:
            if isinstance(error, ProcessKilledError):
                return str(error)
            if is_memory_full(error):
                return "the memory is full"
            if timing.settings.workers:
                return f"workers cannot run here: {' '.join(str(error).split())[:200]}"
            raise


def _first_repeat(
    make: _Make, settings: ProgramSettings, batches: _Batches, *, share: float, repeats: int, began: float
) -> tuple[_Batches, float, ProgramEpoch] | str:
    """Train on as many batches as let all repeats fit ``share`` seconds from ``began``, on `time.time`.

    Returns the batches, the seconds until the first was trained, and the epoch; or why even the least do not fit.
    """
    program = make()
    _ = program.model  # loads it
    loaded = time.time() - began
    pilot = program.train(settings, batches[:1])
    warm_up = loaded + pilot.seconds
    left = share - warm_up
    if pilot.seconds <= left:  # the first batch is slower than the next ones
        pilot = program.train(settings, batches[:1])
        left -= pilot.seconds
    of_a_batch = pilot.seconds - pilot.start
    least = min(_LEAST_BATCHES[settings.padding], len(batches))
    if (needed := share - left + pilot.start + least * of_a_batch) > share:
        return f"it needs {duration(needed)} at least, and its share of the budget was {duration(share)}"
    of_a_repeat = (left - (repeats - 1) * warm_up) / repeats - pilot.start
    count = min(len(batches), max(least, int(of_a_repeat / max(of_a_batch, 1e-9))))
    places = (np.arange(count) + 0.5) * len(batches) / count  # evenly spread, so that all lengths are among them
    chosen = [batches[int(place)] for place in places]
    return chosen, warm_up, program.train(settings, random.Random(0).sample(chosen, count))


def _next_repeat(make: _Make, settings: ProgramSettings, batches: _Batches, repeat: int) -> ProgramEpoch:
    """Train on the batches, after a first batch that is not timed."""
    program = make()
    program.train(settings, batches[:1])
    return program.train(settings, random.Random(repeat).sample(batches, len(batches)))


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
        run, seconds = measurement.train(cache, solver=Solver.SGD, epochs=settings.epochs)
        return run["epoch_seconds"] * sample.table_rows / run["rows"]["train"], seconds - run["fit_seconds"]

    for _ in range(2):  # the first time includes the import of libraries, which is not timed for the program either
        deadline = time.perf_counter() + share
        cache, start = measurement.extract("few.h5", sample.texts[:few], sample.labels[:few])
        _, few_other = train(cache)
    record = open_cache(cache).record
    per_text = record["encode_seconds"] / record["distinct_texts"]
    left, least = deadline - time.perf_counter(), min(_LEAST_FACTOR * few, len(sample.texts))
    whole = start + per_text * sample.table_texts <= left
    rows = sample.table_rows if whole else 0
    for repeats in range(settings.repeats, 0, -1):  # fewer repeats, where a sample for each would have too few rows
        if rows < least:
            rows = min(int((left / repeats - start) / per_text), len(sample.texts))
    if rows < least:
        needed = duration(start + per_text * least)
        return StageTimes(not_run=f"a sample takes {needed}, and its share of the budget was {duration(share)}")
    # The few rows are in the start, which is not scaled.
    more_texts, more_rows = ((size - few) / max(rows - few, 1) for size in (sample.table_texts, sample.table_rows))
    table: tuple[Any, ...] = (sample.table,) if whole else (sample.texts[:rows], sample.labels[:rows])
    extracts: list[float] = []
    seconds = 0.0
    while not extracts or (len(extracts) < settings.repeats and time.perf_counter() + seconds <= deadline):
        cache, seconds = measurement.extract("sample.h5", *table)
        # Where chance made the few rows slow, the sample still took what the encoder took.
        took = seconds if whole else max(seconds, start + per_text * (rows - few))
        extracts.append(took if whole else scale(took, start=start, factor=more_texts))
    epochs, others = zip(*(train(cache) for _ in range(settings.repeats)), strict=True)
    if not whole:
        others = tuple(scale(other, start=few_other, factor=more_rows) for other in others)
    experiments = [other + settings.epochs * epoch for epoch, other in zip(epochs, others, strict=True)]
    epoch, experiment = Spread.of(epochs), Spread.of(experiments)
    return StageTimes(
        rows=rows,
        whole=whole,
        extract=Spread.of(extracts),
        extract_start=start,
        epoch=epoch,
        experiment=experiment,
        default_experiment=experiment.median + (StageTimes.default_epochs - settings.epochs) * epoch.median,
    )
