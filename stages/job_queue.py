"""The queue of jobs that workers do: who has which, what is put back, and when all is done.

It knows neither what the jobs are nor which engine the workers are of. A worker that is lost, or past the deadline, is
replaced, and its job put back. A job may then be done twice, which must do no harm. An error in a job ends the run.
"""

from __future__ import annotations

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from ..cache.errors import HeadstartError

MOST_ATTEMPTS = 5
"""How many workers may be lost over one job."""
LEAST_DEADLINE = 600.0
"""Seconds that every job may take, unless the user sets another deadline."""
_TIMES_MEDIAN = 10
"""How many times the median of the jobs that are done a job may take."""
_WAIT_SECONDS = 1.0
Worker = int
"""The number of a worker."""
_Job = TypeVar("_Job", bound=Hashable)  # its text names it in messages
_Made = TypeVar("_Made")
_Job_contra = TypeVar("_Job_contra", contravariant=True)
_Made_co = TypeVar("_Made_co", covariant=True)


@dataclasses.dataclass(frozen=True)
class Ready:
    """A worker has started, and can be given its first job."""

    worker: Worker


@dataclasses.dataclass(frozen=True)
class Done(Generic[_Made_co]):
    """A worker has done its job."""

    worker: Worker
    made: _Made_co


@dataclasses.dataclass(frozen=True)
class Lost:
    """A worker is gone."""

    worker: Worker
    why: str


class Pool(Protocol[_Job_contra, _Made_co]):
    """Workers of an engine."""

    def start(self) -> None:
        """Ask for one more worker. It may have to wait for room, and says `Ready` when it has started."""

    def give(self, worker: Worker, job: _Job_contra) -> None:
        """Give a job to an idle worker."""

    def stop(self, worker: Worker) -> None:
        """End a worker, also one that does not answer. Nothing more is heard of it."""

    def wait(self, seconds: float) -> Sequence[Ready | Done[_Made_co] | Lost]:
        """Wait for at most so long, until something has happened.

        Raises:
            HeadstartError: a job failed.
        """


@dataclasses.dataclass(frozen=True)
class State:
    """How far the work is."""

    done: int  # jobs
    jobs: int
    running: int
    longest: float  # seconds that the slowest running job has taken


class JobQueue(Generic[_Job, _Made]):
    """Jobs, and the workers that do them."""

    def __init__(
        self,
        pool: Pool[_Job, _Made],
        *,
        workers: int,
        deadline: float | None = None,
        on_state: Callable[[State], None] = lambda state: None,
        on_lost: Callable[[_Job | None, str], None] = lambda job, why: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the workers.

        Args:
            pool: Where they come from.
            workers: How many.
            deadline: Seconds that a job may take; None: ten times the median of those done, at least 10 minutes, and
                twice as long each time that it took too long.
            on_state: Called about once a second, and when a job is done.
            on_lost: Called with a job that is put back, and why; None where an idle worker was lost.
            now: The time in seconds.
        """
        self._pool, self._deadline, self._now = pool, deadline, now
        self._on_state, self._on_lost = on_state, on_lost
        self._idle: list[Worker] = []
        self._running: dict[Worker, tuple[_Job, float]] = {}
        self._losses: collections.Counter[_Job | None] = collections.Counter()
        self._stops: collections.Counter[_Job] = collections.Counter()  # of late workers
        self._most_idle = MOST_ATTEMPTS * workers
        for _ in range(workers):
            pool.start()

    def run(self, jobs: Sequence[_Job]) -> Iterator[_Made]:
        """Do all jobs; yield what was made, as it is made. Where some jobs need others, they are given to another call.

        Raises:
            HeadstartError: a job failed, or too many workers were lost over it.
        """
        waiting, done, seconds = collections.deque(jobs), 0, list[float]()
        while done < len(jobs):
            while waiting and self._idle:
                worker, job = self._idle.pop(), waiting.popleft()
                self._running[worker] = job, self._now()
                self._pool.give(worker, job)
            for answer in self._pool.wait(_WAIT_SECONDS):
                if isinstance(answer, Ready):
                    self._idle.append(answer.worker)
                elif isinstance(answer, Lost):
                    waiting.extendleft(self._replace(answer.worker, answer.why))
                else:
                    _, started = self._running.pop(answer.worker)
                    seconds.append(self._now() - started)
                    self._idle.append(answer.worker)
                    done += 1
                    yield answer.made
            for worker, limit in self._late(seconds):
                waiting.extendleft(self._stop(worker, limit))
            longest = max((self._now() - started for _, started in self._running.values()), default=0.0)
            self._on_state(State(done, len(jobs), len(self._running), longest))

    def _replace(self, worker: Worker, why: str) -> list[_Job]:
        """Start another worker in the place of a lost one; return the job that it had, if any."""
        job = self._running.pop(worker, (None, 0.0))[0]
        self._idle = [each for each in self._idle if each != worker]
        self._losses[job] += 1
        if self._losses[job] >= (self._most_idle if job is None else MOST_ATTEMPTS):
            what = "workers that did nothing yet" if job is None else f"workers over {job}"
            raise HeadstartError(f"given up, for {self._losses[job]} {what} were lost; the last: {why}")
        self._on_lost(job, why)
        self._pool.start()
        return [] if job is None else [job]

    def _late(self, seconds: Sequence[float]) -> list[tuple[Worker, float]]:
        """The workers whose jobs take too long, with the seconds that they had."""
        usual = self._deadline
        if usual is None:
            usual = max(LEAST_DEADLINE, _TIMES_MEDIAN * statistics.median(seconds)) if seconds else float("inf")
        late, now = list[tuple[Worker, float]](), self._now()
        for worker, (job, started) in self._running.items():
            if now - started > usual:
                # A job that was too slow before may only be larger than others. It gets more, unless the user says.
                limit = usual * 2.0 ** self._stops[job] if self._deadline is None else usual
                late += [(worker, limit)] if now - started > limit else []
        return late

    def _stop(self, worker: Worker, limit: float) -> list[_Job]:
        """Stop a late worker; return the job that it had."""
        self._stops[self._running[worker][0]] += 1
        self._pool.stop(worker)
        return self._replace(worker, f"it took more than {limit:,.0f} seconds")
