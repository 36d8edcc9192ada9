"""The queue of shards that workers make: who has which, what is put back, and when it is done.

It knows no engine. A worker that is lost, or past the deadline, is replaced, and its shard put back. A shard may then
be made twice, which gives the same bytes under the same name. An error in a shard ends the run.
"""

from __future__ import annotations

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ...cache.errors import HeadstartError
from .plan import Shard
from .shards import Made

MOST_ATTEMPTS = 5
"""How many workers may be lost over one shard."""
LEAST_DEADLINE = 600.0
"""Seconds that every shard may take, unless the user sets another deadline."""
_TIMES_MEDIAN = 10
"""How many times the median of the shards that are done a shard may take."""
_WAIT_SECONDS = 1.0
Worker = int
"""The number of a worker."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A shard to make, or its file of common texts."""

    shard: Shard
    common: bool = False

    def __str__(self) -> str:
        return f"{'the common texts of ' if self.common else ''}shard {self.shard.number}"


Jobs = Sequence[Job]
"""What is to be made, in order: common texts first, for shards copy them."""


@dataclasses.dataclass(frozen=True)
class Ready:
    """A worker has started, and can be given its first job."""

    worker: Worker


@dataclasses.dataclass(frozen=True)
class Done:
    """A worker has done its job."""

    worker: Worker
    made: Made


@dataclasses.dataclass(frozen=True)
class Lost:
    """A worker is gone."""

    worker: Worker
    why: str


class Pool(Protocol):
    """Workers of an engine."""

    def start(self) -> None:
        """Ask for one more worker. It may have to wait for room, and says `Ready` when it has started."""

    def give(self, worker: Worker, job: Job) -> None:
        """Give a job to an idle worker."""

    def stop(self, worker: Worker) -> None:
        """End a worker, also one that does not answer. Nothing more is heard of it."""

    def wait(self, seconds: float) -> list[Ready | Done | Lost]:
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


class ShardQueue:
    """Jobs, and the workers that do them."""

    def __init__(
        self,
        pool: Pool,
        *,
        workers: int,
        deadline: float | None = None,
        on_state: Callable[[State], None] = lambda state: None,
        on_lost: Callable[[Job | None, str], None] = lambda job, why: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the workers.

        Args:
            pool: Where they come from.
            workers: How many.
            deadline: Seconds that a job may take; None: ten times the median of those done, at least 10 minutes.
            on_state: Called about once a second, and when a job is done.
            on_lost: Called with a job that is put back, and why; None where an idle worker was lost.
            now: The time in seconds.
        """
        self._pool, self._deadline, self._now = pool, deadline, now
        self._on_state, self._on_lost = on_state, on_lost
        self._idle: list[Worker] = []
        self._running: dict[Worker, tuple[Job, float]] = {}
        self._losses: collections.Counter[Job | None] = collections.Counter()
        self._most_idle = MOST_ATTEMPTS * workers
        for _ in range(workers):
            pool.start()

    def run(self, jobs: Jobs) -> Iterator[Made]:
        """Do all jobs; yield what was made, as it is made. No shard is begun before the common texts are there.

        Raises:
            HeadstartError: a job failed, or too many workers were lost over it.
        """
        for common in (True, False):
            yield from self._run([job for job in jobs if job.common is common])

    def _run(self, jobs: Jobs) -> Iterator[Made]:
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
            limit = self._limit(seconds)
            for worker, (_, started) in list(self._running.items()):
                if self._now() - started > limit:
                    self._pool.stop(worker)
                    waiting.extendleft(self._replace(worker, f"it took more than {limit:,.0f} seconds"))
            longest = max((self._now() - started for _, started in self._running.values()), default=0.0)
            self._on_state(State(done, len(jobs), len(self._running), longest))

    def _replace(self, worker: Worker, why: str) -> list[Job]:
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

    def _limit(self, seconds: Sequence[float]) -> float:
        """Seconds that a job may take now."""
        if self._deadline is not None:
            return self._deadline
        return max(LEAST_DEADLINE, _TIMES_MEDIAN * statistics.median(seconds)) if seconds else float("inf")
