"""The queue of jobs: every job is done once it is done, whoever is lost; a job that cannot be done ends the run."""

from __future__ import annotations

import random
from typing import Any

import pytest
from headstart.cache.errors import DamagedError, HeadstartError
from headstart.stages.job_queue import (
    LEAST_DEADLINE,
    MOST_ATTEMPTS,
    Done,
    JobQueue,
    Lost,
    Ready,
    State,
    Worker,
)
from hypothesis import given
from hypothesis import strategies as st


class SimulatedPool:
    """Workers whose jobs take so many seconds of a clock of their own; some are lost, or freeze."""

    def __init__(self, seconds: Any, *, room: int = 10**9) -> None:
        """``seconds`` of a worker and a job: a number; "lost" or "frozen"; or an error."""
        self.clock, self.seconds, self.room = 0.0, seconds, room
        self.events: list[tuple[float, Ready | Done[str] | Lost | Exception]] = []
        self.given: dict[Worker, int] = {}
        self.order: list[tuple[Worker, int]] = []
        self.workers = 0
        self.stopped: list[Worker] = []

    def start(self) -> None:
        self.workers += 1
        if self.workers <= self.room:  # else it waits for ever
            self.events.append((self.clock + 1, Ready(self.workers)))

    def give(self, worker: Worker, job: int) -> None:
        self.given[worker] = job
        self.order.append((worker, job))
        takes = self.seconds(worker, job)
        if isinstance(takes, Exception):
            self.events.append((self.clock, takes))
        elif takes == "lost":
            self.events.append((self.clock + 1, Lost(worker, "its node is gone")))
        elif takes != "frozen":
            self.events.append((self.clock + takes, Done(worker, f"made {job}")))

    def stop(self, worker: Worker) -> None:
        self.stopped.append(worker)
        self.events = [e for e in self.events if not isinstance(e[1], Done) or e[1].worker != worker]

    def wait(self, seconds: float) -> list[Ready | Done[str] | Lost]:
        first = min((at for at, _ in self.events), default=float("inf"))
        self.clock = min(max(first, self.clock), self.clock + seconds)
        now = [event for at, event in self.events if at <= self.clock]
        self.events = [(at, event) for at, event in self.events if at > self.clock]
        for event in now:
            if isinstance(event, Exception):
                raise event
        return [event for event in now if not isinstance(event, Exception)]


def queue_of(pool: SimulatedPool, workers: int, **options: Any) -> JobQueue[int, str]:
    return JobQueue[int, str](pool, workers=workers, now=lambda: pool.clock, **options)


@given(st.data())
def test_every_job_is_done_whoever_is_lost(data: st.DataObject) -> None:
    """Each is lost four times at most; those of another call come later."""
    workers, count = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 20))
    rng, lost = random.Random(data.draw(st.integers(0, 99))), dict[int, int]()

    def seconds(worker: Worker, job: int) -> Any:
        fate = rng.choice(["lost", "frozen", "well", "well"])
        if fate == "well" or lost.get(job, 0) == MOST_ATTEMPTS - 1:
            return rng.random() * 20
        lost[job] = lost.get(job, 0) + 1
        return fate

    pool = SimulatedPool(seconds)
    queue, first = queue_of(pool, workers, deadline=100), count // 3
    for jobs in (range(first), range(first, count)):  # the second call begins with workers that the first one left
        assert sorted(queue.run(jobs)) == sorted(f"made {job}" for job in jobs)
    assert pool.workers == workers + sum(lost.values())
    is_second = [job >= first for _, job in pool.order]
    assert is_second == sorted(is_second)


def test_jobs_are_not_given_to_workers_that_never_start() -> None:
    """A lost node leaves less room than there were workers: those that are left do its jobs."""
    pool = SimulatedPool(lambda worker, job: "lost" if worker == 1 else 5, room=2)
    assert len(list(queue_of(pool, 2).run(range(6)))) == 6
    assert {worker for worker, _ in pool.order} == {1, 2}


def test_a_job_past_the_deadline_is_put_back_and_its_worker_stopped() -> None:
    pool = SimulatedPool(lambda worker, job: "frozen" if worker == 1 else 5)
    notes: list[tuple[int | None, str]] = []
    queue = queue_of(pool, 2, deadline=30, on_lost=lambda job, why: notes.append((job, why)))
    assert len(list(queue.run(range(4)))) == 4
    assert pool.stopped == [1] and [why for _, why in notes] == ["it took more than 30 seconds"]


def test_without_a_deadline_the_others_say_how_long_a_job_may_take() -> None:
    for usual, limit in ((5.0, LEAST_DEADLINE), (100.0, 1000.0)):
        pool = SimulatedPool(lambda worker, job, usual=usual: "frozen" if worker == 1 else usual)
        list(queue_of(pool, 3).run(range(9)))
        assert limit <= pool.clock < limit + 2 * usual + 5


def test_a_job_that_was_put_back_may_take_longer() -> None:
    """A job that takes more than ten times the median is slow, not frozen."""
    pool = SimulatedPool(lambda worker, job: 3 * LEAST_DEADLINE if job == 5 else 1)
    assert len(list(queue_of(pool, 2).run(range(6)))) == 6
    assert [job for _, job in pool.order].count(5) == 3 and len(pool.stopped) == 2


def test_a_job_that_costs_every_worker_is_given_up() -> None:
    pool = SimulatedPool(lambda worker, job: "lost" if job == 3 else 1)
    with pytest.raises(HeadstartError, match="5 workers over 3 were lost; the last: its node is gone"):
        list(queue_of(pool, 2).run(range(6)))


def test_workers_that_are_lost_before_they_do_anything_end_the_run() -> None:
    pool = SimulatedPool(lambda worker, job: 1)
    pool.start = lambda: pool.events.append((pool.clock + 1, Lost(1, "no headstart there")))  # type: ignore[method-assign]
    with pytest.raises(HeadstartError, match="10 workers that did nothing yet were lost; the last: no headstart"):
        list(queue_of(pool, 2).run([1]))


def test_an_error_in_a_job_ends_the_run() -> None:
    pool = SimulatedPool(lambda worker, job: DamagedError("job 2: damaged") if job == 2 else 1)
    with pytest.raises(DamagedError, match="job 2: damaged"):
        list(queue_of(pool, 2).run(range(6)))


def test_the_state_says_how_far_it_is_and_who_is_slowest() -> None:
    pool, states = SimulatedPool(lambda worker, job: 10.0 * job), list[State]()
    list(queue_of(pool, 2, on_state=states.append).run([1, 2, 3]))
    assert [state.done for state in states] == sorted(state.done for state in states)
    assert states[-1].done == states[-1].jobs == 3 and states[-1].running == 0
    assert max(state.longest for state in states) == pytest.approx(29, abs=1.5)
