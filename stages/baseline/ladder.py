"""The practitioner's program, timed on rung after rung under a budget, and scaled to the whole table."""

from __future__ import annotations

import dataclasses
import enum
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..encoders.memory import is_memory_full
from ..settings import Precision
from ..units import duration
from .extrapolate import Spread, scale
from .process import ProcessKilledError
from .program import Padding, Program, ProgramEpoch, ProgramSettings

_LEAST_BATCHES = {Padding.FIXED: 2, Padding.BATCH: 6}
"""Least batches of a repeat. Batches sorted by length differ, so more of them are needed to represent the table."""
_Batches = list[list[int]]


class Rung(enum.StrEnum):
    """One piece of advice on how to train a classifier faster. A practitioner follows them in this order."""

    START = "encoder trained, batch 8"  # no advice yet: float32, and every text padded to the greatest length
    BATCH = "batch 16"
    PRECISION = "mixed precision"  # autocast, with a gradient scaler on CUDA
    FROZEN = "frozen encoder"  # only the head is trained; the encoder runs without gradients
    WORKERS = "4 workers"  # processes that tokenize during the training
    PINNED = "pinned memory"  # batches are copied to the device from page-locked memory
    SORTED = "sorted by length"  # a batch has texts of similar length; the frozen encoder has no dropout


def advice(half: Precision) -> dict[Rung, dict[str, Any]]:
    """Return what each rung changes in `ProgramSettings`; ``half`` is the device's format for mixed precision."""
    return {
        Rung.START: {},
        Rung.BATCH: {"batch_size": 16},
        Rung.PRECISION: {"precision": half},
        Rung.FROZEN: {"frozen": True},
        Rung.WORKERS: {"workers": 4},
        Rung.PINNED: {"pinned": True},
        Rung.SORTED: {"padding": Padding.BATCH, "noisy": False},
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class RungResult:
    """What was measured on a rung."""

    rung: Rung
    over: Rung | None  # the rung whose program it changes; None for the first, and where that program was not timed
    settings: ProgramSettings
    kept: bool  # the next rungs follow it too: it was faster than `over`, or is known to pay
    rows: int = 0  # of a repeat
    epoch: Spread | None = None  # over the whole table
    not_run: str | None = None  # why there is no `epoch`


@dataclasses.dataclass
class _Timing:
    """A rung while it is measured."""

    result: RungResult
    batches: _Batches = dataclasses.field(default_factory=list)  # of each repeat
    factor: float = 1.0  # padded tokens of the whole table over those of the batches
    expected: float = 0.0  # seconds of one more repeat, its process included
    seconds: list[float] = dataclasses.field(default_factory=list)  # of each repeat, scaled to the whole table


@dataclasses.dataclass(kw_only=True)
class Ladder:
    """Times rungs in rounds. In the first round, each rung is sized, timed, and kept or taken back.

    A round covers all rungs, so that a disturbance of the machine slows all of them alike. Advice that made the program
    slower is taken back before the next rung, as a practitioner does. Larger batches, freezing, and mixed precision on
    a device that has units for it are followed even where the budget could not time them, because the next rungs must
    be what a practitioner would run.
    """

    make: Callable[[], Program]  # the practitioner's program, on rows drawn at random from the table
    apart: Callable[..., Any]  # runs work in a process of its own, as `in_new_process` does
    half: Precision  # of mixed precision
    half_pays: bool  # the device has units for it
    table_rows: int
    repeats: int  # of each rung, where the budget allows them
    on_step: Callable[[str], None] = lambda detail: None  # called again and again with the rung that is timed

    def climb(self, rungs: Sequence[Rung], deadline: float) -> tuple[RungResult, ...]:
        """Measure rungs in order; each has an equal share of the time until ``deadline``, on `time.perf_counter`."""
        self._climbed: list[_Timing] = []
        self._deadline, self._program = deadline, self.make()  # a program to divide rows into batches
        for number, rung in enumerate(rungs):
            to_come = sum(max(self.repeats - len(timing.seconds), 0) * timing.expected for timing in self._climbed)
            self._climb_one(rung, (deadline - time.perf_counter() - to_come) / (len(rungs) - number))
        for number in range(1, self.repeats):
            for timing in self._climbed:
                if 0 < len(timing.seconds) <= number and self._fits(timing.expected):
                    self._time_again(timing)
        return tuple(
            dataclasses.replace(timing.result, epoch=Spread.of(timing.seconds) if timing.seconds else None)
            for timing in self._climbed
        )

    def _climb_one(self, rung: Rung, share: float) -> None:
        """Time a rung once, on as many batches as let all its repeats fit its share; then keep it or take it back."""
        last = next((timing for timing in reversed(self._climbed) if timing.result.kept), None)
        settings = dataclasses.replace(last.result.settings if last else ProgramSettings(), **advice(self.half)[rung])
        pays = rung in (Rung.BATCH, Rung.FROZEN) or (rung is Rung.PRECISION and self.half_pays)
        over = last.result.rung if last and last.seconds else None
        timing = _Timing(RungResult(rung=rung, over=over, settings=settings, kept=pays))
        self._climbed.append(timing)
        rows = len(self._program.texts)
        batches = self._program.batches(settings, np.arange(rows))
        answer: Any = "its share of the budget was spent before it"
        if share > 0:
            sizes = functools.partial(_first_repeat, share=share, repeats=self.repeats, began=time.time())
            answer = self._run(timing, functools.partial(sizes, self.make, settings, batches))
        if isinstance(answer, str):
            timing.result = dataclasses.replace(timing.result, not_run=answer)
            return
        timing.batches, warm_up, epoch = answer
        whole, part = (self._program.padded_tokens(settings, some) for some in (batches, timing.batches))
        timing.factor = whole / part * self.table_rows / rows
        timing.expected = warm_up + epoch.seconds
        timing.seconds.append(scale(epoch.seconds, start=epoch.start, factor=timing.factor))
        kept = rung not in (Rung.WORKERS, Rung.PINNED)  # without a rung to compare with, nothing shows that these help
        if last and last.seconds and rung is not Rung.FROZEN:
            kept = self._is_faster(timing, last)
        timing.result = dataclasses.replace(timing.result, kept=kept, rows=sum(map(len, timing.batches)))

    def _is_faster(self, timing: _Timing, last: _Timing) -> bool:
        """Compare the least times, because disturbances only slow down. What seems slower is timed again beside it."""
        seems_slower = min(timing.seconds) >= min(last.seconds)
        if seems_slower and self.repeats > 1 and self._fits(last.expected + timing.expected):
            self._time_again(last)
            self._time_again(timing)
        return min(timing.seconds) < min(last.seconds)

    def _time_again(self, timing: _Timing) -> None:
        """Time a rung once more. Where that fails, its earlier repeats stay."""
        began, repeat = time.perf_counter(), len(timing.seconds)
        work = functools.partial(_next_repeat, self.make, timing.result.settings, timing.batches, repeat)
        epoch = self._run(timing, work)
        if not isinstance(epoch, str):
            timing.seconds.append(scale(epoch.seconds, start=epoch.start, factor=timing.factor))
            timing.expected = min(timing.expected, time.perf_counter() - began)  # a disturbance need not come again

    def _run(self, timing: _Timing, work: Callable[[], Any]) -> Any:
        """Run work in a process of its own; return its result, or as a str why the program cannot run like this."""
        detail = f"{timing.result.rung}, round {len(timing.seconds) + 1}"
        self.on_step(detail)
        try:
            return self.apart(work, on_tick=functools.partial(self.on_step, detail))
        except (OSError, RuntimeError, MemoryError) as error:
            if isinstance(error, ProcessKilledError):
                return str(error)
            if is_memory_full(error):
                return "the memory is full"
            if timing.result.settings.workers:
                return f"workers cannot run here: {' '.join(str(error).split())[:200]}"
            raise

    def _fits(self, seconds: float) -> bool:
        return time.perf_counter() + seconds <= self._deadline


def _first_repeat(
    make: Callable[[], Program],
    settings: ProgramSettings,
    batches: _Batches,
    *,
    share: float,
    repeats: int,
    began: float,
) -> tuple[_Batches, float, ProgramEpoch] | str:
    """Choose as many batches as let all repeats fit ``share`` seconds from ``began`` (`time.time`), and train on them.

    Returns:
        The batches, the seconds until the first batch was trained, and the epoch; or why even the least do not fit.
    """
    program = make()
    _ = program.model  # loads it
    loaded, budget = time.time() - began, f"its share of the budget was {duration(share)}"
    pilot = program.train(settings, batches[:1])
    warm_up = loaded + pilot.seconds
    left = share - warm_up
    if pilot.seconds <= left:  # the first batch is slower than the next ones
        pilot = program.train(settings, batches[:1])
        left -= pilot.seconds
    if left < 0:
        return f"a batch took {duration(pilot.seconds)}, and {budget}"
    of_a_batch = pilot.seconds - pilot.start
    least = min(_LEAST_BATCHES[settings.padding], len(batches))
    if pilot.start + least * of_a_batch > left:
        return f"it needs {duration(share - left + pilot.start + least * of_a_batch)} at least, and {budget}"
    of_a_repeat = (left - (repeats - 1) * warm_up) / repeats - pilot.start
    count = min(len(batches), max(least, int(of_a_repeat / max(of_a_batch, 1e-9))))
    places = (np.arange(count) + 0.5) * len(batches) / count  # evenly spread, so that all lengths are among them
    chosen = [batches[int(place)] for place in places]
    return chosen, warm_up, program.train(settings, _shuffled(chosen, 0))


def _next_repeat(
    make: Callable[[], Program], settings: ProgramSettings, batches: _Batches, repeat: int
) -> ProgramEpoch:
    """Train on the batches, after a first batch that is not timed."""
    program = make()
    program.train(settings, batches[:1])
    return program.train(settings, _shuffled(batches, repeat))


def _shuffled(batches: _Batches, seed: int) -> _Batches:
    return [batches[number] for number in np.random.default_rng(seed).permutation(len(batches))]
