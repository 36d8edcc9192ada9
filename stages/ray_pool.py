"""Jobs done by actors of Ray: one on each GPU, or on each group of cores. No other module knows Ray.

What a worker must know, the jobs, and what was made cross Ray: settings, numbers and reports, never rows or features.
Each worker opens files itself, so all machines must see them under the same paths. Ray retries nothing: the queue puts
back what a lost actor had.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from ..cache.errors import HeadstartError, SettingsError, one_line
from .job_queue import Done, JobQueue, Lost, Ready, State, Worker
from .progress import Note, Report

LOCAL = "local"
_HOST_AND_PORT = re.compile(r"([\w.-]+):(\d{1,5})")
_CONNECT_SECONDS = 10
_SILENCE = {"RAY_grpc_client_keepalive_time_ms": "20000", "RAY_grpc_client_keepalive_timeout_ms": "15000"}
"""How long a machine may be silent before its workers count as lost: 35 s. With Ray's own values, 420 s, a frozen one
was noticed by other means, after twice the time (Ray 2.60)."""
_Job = TypeVar("_Job", bound=Hashable)
_Made = TypeVar("_Made")
_Job_contra = TypeVar("_Job_contra", contravariant=True)
_Made_co = TypeVar("_Made_co", covariant=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Where work runs on Ray, and on how many workers.

    Raises:
        SettingsError: there are no workers, or Ray is not installed.
    """

    address: str  # of a cluster, as `ray.init` takes it; or `LOCAL`
    workers: int | None = None  # None: one for each GPU; without GPUs, one for each node
    deadline: float | None = None  # seconds that a job may take; see `JobQueue`

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise SettingsError(f"`workers` is {self.workers}; it must be at least 1")
        if importlib.util.find_spec("ray") is None:
            raise SettingsError("`ray` needs Ray: pip install 'headstart[ray]'")


class Work(Protocol[_Job_contra, _Made_co]):
    """What a worker must know to do jobs. It is pickled once for each worker."""

    def open(self) -> Callable[[_Job_contra], _Made_co]:
        """Open in a worker what all its jobs need; return what does a job.

        Raises:
            HeadstartError: that failed. It ends the run, as an error in the worker's first job.
        """


@contextlib.contextmanager
def open_workers(
    settings: RaySettings,
    work: Work[_Job, _Made],
    *,
    most: int,
    report: Report,
    on_state: Callable[[State], None],
) -> Iterator[JobQueue[_Job, _Made]]:
    """Connect to Ray, and yield a queue whose workers are actors.

    Args:
        settings: Where, and how many.
        work: What each worker must know.
        most: How many workers have something to do.
        report: Receives a note of what there is, and one for each worker that is lost.
        on_state: See `JobQueue`.

    Raises:
        SettingsError: the cluster cannot be reached.
    """
    with _connected(settings.address) as ray:
        workers, options = _resources(ray, settings.workers)
        workers = min(workers, max(1, most))
        report(Note(f"{workers:,} workers on Ray, each with {_in_words(options)}"))
        yield JobQueue(
            _RayPool(ray, work, options),
            workers=workers,
            deadline=settings.deadline,
            on_state=on_state,
            on_lost=lambda job, why: report(Note(f"{'a worker' if job is None else job} was lost: {why}")),
        )


class _Actor(Generic[_Job, _Made]):
    """Does jobs in a process of Ray. Its constructor does nothing that can fail: errors come from its calls."""

    def __init__(self, work: Work[_Job, _Made]) -> None:
        self._work = work
        self._opened: Callable[[_Job], _Made] | None = None

    def ready(self) -> None:
        """Return when the actor has started."""

    def do(self, job: _Job) -> _Made:
        """Do a job; before the first one, open what all of them need."""
        if self._opened is None:
            self._opened = self._work.open()
        return self._opened(job)


class _RayPool(Generic[_Job, _Made]):
    """Actors as the workers of a queue."""

    def __init__(self, ray: Any, work: Work[_Job, _Made], options: dict[str, Any]) -> None:
        # Ray retries nothing by itself. A job whose node was lost hung with retries by Ray, where no other was free.
        self._ray, self._work = ray, work
        self._actor = ray.remote(max_restarts=0, max_task_retries=0, **options)(_Actor)
        self._actors: dict[Worker, Any] = {}
        self._waiting: dict[Any, tuple[Worker, _Job | None]] = {}  # by what Ray gives for a call

    def start(self) -> None:
        worker = max(self._actors, default=0) + 1
        self._actors[worker] = actor = self._actor.remote(self._work)
        self._waiting[actor.ready.remote()] = worker, None

    def give(self, worker: Worker, job: _Job) -> None:
        call = self._actors[worker].do.remote(job)
        self._waiting[call] = worker, job

    def stop(self, worker: Worker) -> None:
        self._ray.kill(self._actors[worker], no_restart=True)
        self._waiting = {call: given for call, given in self._waiting.items() if given[0] != worker}
        self._actors[worker] = None  # its number is not used again

    def wait(self, seconds: float) -> list[Ready | Done[_Made] | Lost]:
        self._ray.wait(list(self._waiting), num_returns=1, timeout=seconds)
        calls, _ = self._ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)
        return [self._answer(call) for call in calls]

    def _answer(self, call: Any) -> Ready | Done[_Made] | Lost:
        worker, job = self._waiting.pop(call)
        errors = self._ray.exceptions
        try:
            made = self._ray.get(call)
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, HeadstartError):
                raise type(cause)(f"{job}: {cause}") from None
            raise HeadstartError(f"{job} failed: {type(cause).__name__}: {one_line(cause)}") from error
        except errors.RayError as error:
            with contextlib.suppress(errors.RayError):
                self._ray.kill(self._actors[worker], no_restart=True)
            return Lost(worker, one_line(error).partition(". ")[0][:200])
        return Ready(worker) if job is None else Done(worker, made)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect to a cluster of Ray, or start one on this machine.

    Ray listens on all interfaces, whatever address it is told to be at: docs/shards.md says so.

    Raises:
        SettingsError: there is no such cluster, or another one is connected.
    """
    _require_answer(address)
    for name, value in {**_SILENCE, "RAY_USAGE_STATS_ENABLED": "0"}.items():  # nothing is sent to Ray's makers
        os.environ.setdefault(name, value)
    import ray

    mine = not ray.is_initialized()
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == LOCAL:
        options |= {"address": LOCAL, "_node_ip_address": "127.0.0.1", "include_dashboard": False}
    else:
        options |= {"address": address}
    on_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if mine:
            ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise SettingsError(f"`ray` is {address[:80]!r}, which Ray refuses: {one_line(error)[:200]}") from None
    finally:
        if on_main and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # which Ray replaces
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse a host and port where nothing answers: Ray itself would try for minutes."""
    if match := _HOST_AND_PORT.fullmatch(address):
        try:
            socket.create_connection((match[1], int(match[2])), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            raise SettingsError(f"`ray` is {address!r}, and no cluster answers there: {one_line(error)}") from None


def _resources(ray: Any, workers: int | None) -> tuple[int, dict[str, Any]]:
    """How many workers there are, and what each of them gets: a GPU, or else a share of the cores."""
    found = ray.cluster_resources()
    gpus, cores = int(found.get("GPU", 0)), int(found.get("CPU", 1))
    if gpus:
        count = workers or gpus
        return count, {"num_gpus": 1, "num_cpus": max(1, cores // max(gpus, count))}
    count = workers or sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes()) or 1
    return count, {"num_cpus": max(1, cores // count)}


def _in_words(options: dict[str, Any]) -> str:
    gpu = "a GPU and " if options.get("num_gpus") else ""
    return f"{gpu}{options['num_cpus']} cores"
