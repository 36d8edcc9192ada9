"""The practitioner's program, rung by rung, under a budget: what an epoch over the whole table takes on each."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..encoders.memory import is_memory_full
from ..settings import Precision
from ..units import duration
from .extrapolate import Spread, scale
from .process import ProcessKilledError, Trains
from .program import Program
from .rungs import Padding, Rung, RungSettings, advice

_LEAST_BATCHES = {Padding.FIXED: 2, Padding.BATCH: 6}
"""Batches of a repeat, at least. Sorted ones differ in length, so there it takes more to stand for the table."""
_Batches = list[list[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RungResult:
    """What a rung came to.

    Attributes:
        rung: Which.
        over: The rung whose program it changes; None for the first.
        settings: How the program ran.
        kept: Whether the rungs after it heed it too: it was faster than ``over``, or could not be timed and is known to
            be worth it.
        rows: Rows of a repeat.
        epoch: Seconds of an epoch over the whole table; None where it was not run.
        not_run: Why it was not run, or None.
    """

    rung: Rung
    over: Rung | None
    settings: RungSettings
    kept: bool
    rows: int
    epoch: Spread | None
    not_run: str | None = None


@dataclasses.dataclass
class _Measured:
    """A rung while it is measured."""

    rung: Rung
    over: Rung | None
    settings: RungSettings
    batches: _Batches
    factor: float
    """How many times the work of the sample the whole table is."""
    begin: float
    """Seconds until a new process has loaded the program and trained on a first batch."""
    expected: float
    """Seconds that timing it once more takes, in a new process."""
    seconds: list[float]
    """Scaled to the whole table, of each repeat."""
    kept: bool = True


class _DoesNotFit(Exception):
    """A rung takes more than its share of the budget."""


class Ladder:
    """Climbs: in a first round each rung is sized, timed and kept or not; in the others it is timed again.

    Rounds go over all rungs, so that what else the machine does in the meantime falls on all of them alike. Advice
    that made the program slower is taken back before the next rung: a practitioner would not keep it. Larger batches,
    mixed precision where there are units for it, and freezing are heeded also where the budget could not time them:
    the rungs after them are to be what a practitioner would run.
    """

    def __init__(
        self,
        program: Program,
        fresh: Callable[[], contextlib.AbstractContextManager[Trains]],
        *,
        table_rows: int,
        half: Precision,
        half_pays: bool,
        repeats: int,
        on_rung: Callable[[str], None] = lambda rung: None,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare.

        Args:
            program: The practitioner's, on rows of the table that were drawn at random.
            fresh: Gives the same program where nothing ran before it; each repeat of a rung has its own.
            table_rows: Rows of the whole table.
            half: What mixed precision computes in.
            half_pays: Whether the device has units for that.
            repeats: How often each rung is timed where the budget lets it.
            on_rung: Told which rung is next.
            on_batch: Called now and then.
        """
        self._program, self._pool, self._table_rows = program, np.arange(program.rows), table_rows
        self._fresh = fresh
        self._half, self._repeats, self._on_rung, self._on_batch = half, repeats, on_rung, on_batch
        self._heeded = {Rung.BATCH, Rung.FROZEN} | ({Rung.PRECISION} if half_pays else set())
        self._rng = np.random.default_rng(0)
        self._found: dict[Rung, _Measured | RungResult] = {}
        self._current: tuple[Rung | None, RungSettings] = (None, RungSettings())
        self._deadline = math.inf

    def climb(self, rungs: Sequence[Rung], deadline: float) -> tuple[RungResult, ...]:
        """Measure rungs in order, each with the same share of the time that is left, on `time.perf_counter`'s clock."""
        self._deadline = deadline
        for number, rung in enumerate(rungs):
            self._on_rung(rung.value)
            left = deadline - time.perf_counter() - sum(self._to_come(each) for each in self._measured())
            self._add(rung, left / (len(rungs) - number))
        for number in range(1, self._repeats):
            for measured in self._measured():
                # One that was disturbed may take less than it seemed to, so what is left is used up.
                if len(measured.seconds) <= number and self._fits(measured.expected):
                    self._on_rung(f"{measured.rung.value}, round {number + 1}")
                    with self._surviving(measured.settings):  # what was timed before stays
                        self._time_again(measured)
        return tuple(self._result(found) for found in self._found.values())

    def _add(self, rung: Rung, share: float) -> None:
        """Size a rung so that all its repeats take no more than its share of the budget, and time it."""
        over, before = self._current
        settings = dataclasses.replace(before, **advice(rung, self._half))
        if share <= 0:
            return self._leave_out(rung, settings, "its share of the budget was spent before it")
        measured = None
        began = time.perf_counter()
        with self._surviving(settings) as reasons, self._fresh() as program:
            loaded = time.perf_counter() - began
            measured = self._sized(rung, settings, program, share=share, loaded=loaded)
            self._time(measured, program)
        if reasons or measured is None:
            return self._leave_out(rung, settings, reasons[0])
        self._found[rung] = measured
        last = self._found[over] if over is not None else None
        if isinstance(last, _Measured) and rung is not Rung.FROZEN:
            measured.kept = self._is_faster(measured, last)
        elif rung in (Rung.WORKERS, Rung.PINNED):
            measured.kept = False  # nothing tells whether it helped
        if measured.kept:
            self._current = rung, settings
        return None

    def _sized(self, rung: Rung, settings: RungSettings, program: Trains, *, share: float, loaded: float) -> _Measured:
        """Choose how many batches a repeat has.

        Raises:
            _DoesNotFit: even the least do not fit the rung's share of the budget, of which ``loaded`` seconds are gone.
        """
        batches = self._program.batches(settings, self._pool)
        spare = f"its share of the budget was {duration(share)}"
        first = pilot = program.train(settings, batches[:1], self._on_batch)
        left = share - loaded - pilot.seconds
        if pilot.seconds <= left:  # the first batch is slower than those after it
            pilot = program.train(settings, batches[:1], self._on_batch)
            left -= pilot.seconds
        if left < 0:
            raise _DoesNotFit(f"a batch took {duration(pilot.seconds)}, and {spare}")
        each = pilot.seconds - pilot.start
        least = min(_LEAST_BATCHES[settings.padding], len(batches))
        if pilot.start + least * each > left:
            needed = duration(share - left + pilot.start + least * each)
            raise _DoesNotFit(f"it needs {needed} at least, and {spare}")
        again = loaded + first.seconds  # what each other repeat begins with
        of_a_repeat = (left - (self._repeats - 1) * again) / self._repeats - pilot.start
        count = min(len(batches), max(least, int(of_a_repeat / max(each, 1e-9))))
        chosen = self._spread_out(batches, count)
        work = [self._program.padded_tokens(settings, part) for part in (batches, chosen)]
        return _Measured(
            rung=rung,
            over=self._current[0],
            settings=settings,
            batches=chosen,
            factor=work[0] / work[1] * self._table_rows / len(self._pool),
            begin=again,
            expected=again + pilot.start + count * each,
            seconds=[],
        )

    def _is_faster(self, measured: _Measured, last: _Measured) -> bool:
        """Whether a rung is faster than the one that it changes; where it seems not, both are timed once more."""
        seems_slower = min(measured.seconds) >= min(last.seconds)
        if seems_slower and self._repeats > 1 and self._fits(last.expected + measured.expected):
            with self._surviving(measured.settings):
                self._time_again(last)
                self._time_again(measured)
        return min(measured.seconds) < min(last.seconds)  # what disturbs only ever slows down

    def _fits(self, seconds: float) -> bool:
        return time.perf_counter() + seconds <= self._deadline

    def _measured(self) -> list[_Measured]:
        return [found for found in self._found.values() if isinstance(found, _Measured)]

    def _to_come(self, measured: _Measured) -> float:
        return max(self._repeats - len(measured.seconds), 0) * measured.expected

    def _result(self, found: _Measured | RungResult) -> RungResult:
        if isinstance(found, RungResult):
            return found
        return RungResult(
            rung=found.rung,
            over=found.over,
            settings=found.settings,
            kept=found.kept,
            rows=sum(map(len, found.batches)),
            epoch=Spread.of(found.seconds),
        )

    def _time_again(self, measured: _Measured) -> None:
        with self._fresh() as program:
            program.train(measured.settings, measured.batches[:1], self._on_batch)  # slower than those after it
            self._time(measured, program)

    def _time(self, measured: _Measured, program: Trains) -> None:
        order = self._rng.permutation(len(measured.batches))
        took = program.train(measured.settings, [measured.batches[number] for number in order], self._on_batch)
        measured.seconds.append(scale(took.seconds, start=took.start, factor=measured.factor))
        # A disturbance is not to be reckoned with.
        measured.expected = min(measured.expected, measured.begin + took.seconds)

    @contextlib.contextmanager
    def _surviving(self, settings: RungSettings) -> Iterator[list[str]]:
        """Run a block; where it ends for want of time, of memory, or of what workers need, say so in the list given."""
        reasons: list[str] = []
        try:
            yield reasons
        except (_DoesNotFit, ProcessKilledError) as error:
            reasons.append(str(error))
        except (OSError, RuntimeError, MemoryError) as error:
            if is_memory_full(error):
                reasons.append("the memory is full")
            elif settings.workers:
                reasons.append(f"workers cannot run here: {' '.join(str(error).split())[:200]}")
            else:
                raise

    def _leave_out(self, rung: Rung, settings: RungSettings, reason: str) -> None:
        heeded = rung in self._heeded
        self._found[rung] = RungResult(
            rung=rung, over=self._current[0], settings=settings, kept=heeded, rows=0, epoch=None, not_run=reason
        )
        if heeded:  # the rung after it changes what was not timed, so nothing is said of how much it gains
            self._current = None, settings

    def _spread_out(self, batches: _Batches, count: int) -> _Batches:
        """So many of the batches, evenly over their order: the longest texts, the shortest, and all between."""
        places = (np.arange(count) + 0.5) * len(batches) / count
        return [batches[int(place)] for place in places]
