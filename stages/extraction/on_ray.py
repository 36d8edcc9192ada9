"""Shards made by actors of Ray: one on each GPU, or on each group of cores. No other module knows Ray.

Only numbers of shards and reports of what was made cross Ray. An actor maps the plan, reads the table and writes its
shards itself, so all machines must see the same folder. Ray retries nothing: the queue puts back what a lost actor had.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...cache.errors import DamagedError, HeadstartError, SettingsError, one_line
from ..encoders.session import EncoderSession
from ..progress import Note, Report, Step
from ..settings import ExtractSettings
from ..tables.remote import RemoteFile
from ..tables.table import Table
from ..units import duration
from .plan import ShardPlan, load_plan
from .queue import Done, Job, Jobs, Lost, Ready, ShardQueue, State, Worker
from .shard_store import ShardStore
from .shards import Made, ShardRunner

LOCAL = "local"
_HOST_AND_PORT = re.compile(r"([\w.-]+):(\d{1,5})")
_CONNECT_SECONDS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaySettings:
    """How shards are made on Ray."""

    address: str  # of a cluster, as `ray.init` takes it; or `LOCAL`
    workers: int | None = None  # None: one for each GPU; without GPUs, one for each node
    deadline: float | None = None  # seconds that a shard may take; see `ShardQueue`


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Work:
    """What an actor must know to make shards."""

    out: Path
    table: Table  # without its remote file
    url: str | None  # of that
    settings: ExtractSettings
    reuse: tuple[Path, ...]
    overwrite: bool
    store: str | None  # the URL


class _Actor:
    """Makes shards in a process of Ray. Its constructor does nothing that can fail: errors come from its calls."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self._runner: ShardRunner | None = None

    def ready(self) -> None:
        """Return when the actor has started."""

    def make(self, number: int, common: bool) -> Made:
        if self._runner is None:
            self._runner = self._open()
        host = re.sub(r"[^\w-]", "-", socket.gethostname())[:64]
        shard = self._runner.plan.shard(number)
        return self._runner.make(shard, common=common, private=f".{host}-{os.getpid()}")

    def _open(self) -> ShardRunner:
        work, table = self._work, self._work.table
        plan = load_plan(work.out)
        if plan is None:
            raise DamagedError(f"{work.out} has no plan here; all machines of the cluster must share its folder")
        if work.url is not None:
            remote = RemoteFile(work.url)
            table = dataclasses.replace(table, remote=remote, files=(remote.copy,))
        session = EncoderSession(work.settings)
        how: dict[str, Any] = {"reuse": work.reuse, "overwrite": work.overwrite}
        store = None if work.store is None else ShardStore(work.store)
        return ShardRunner(plan, work.out, table=table, session=session, store=store, **how)


class _RayPool:
    """Actors as the workers of a queue."""

    def __init__(self, ray: Any, work: _Work, options: dict[str, Any]) -> None:
        # Ray retries nothing by itself. A shard whose node was lost hung with retries by Ray, where no other was free.
        self._ray, self._work = ray, work
        self._actor = ray.remote(max_restarts=0, max_task_retries=0, **options)(_Actor)
        self._actors: dict[Worker, Any] = {}
        self._waiting: dict[Any, tuple[Worker, Job | None]] = {}  # by what Ray gives for a call

    def start(self) -> None:
        worker = max(self._actors, default=0) + 1
        self._actors[worker] = actor = self._actor.remote(self._work)
        self._waiting[actor.ready.remote()] = worker, None

    def give(self, worker: Worker, job: Job) -> None:
        call = self._actors[worker].make.remote(job.shard.number, job.common)
        self._waiting[call] = worker, job

    def stop(self, worker: Worker) -> None:
        self._ray.kill(self._actors[worker], no_restart=True)
        self._waiting = {call: given for call, given in self._waiting.items() if given[0] != worker}
        self._actors[worker] = None  # its number is not used again

    def wait(self, seconds: float) -> list[Ready | Done | Lost]:
        self._ray.wait(list(self._waiting), num_returns=1, timeout=seconds)
        calls, _ = self._ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)
        return [self._answer(call) for call in calls]

    def _answer(self, call: Any) -> Ready | Done | Lost:
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


class RayBackend:
    """Makes shards with actors of Ray: a backend of `extract_shards`."""

    def __init__(self, ray_settings: RaySettings) -> None:
        """Check what can be checked without Ray.

        Raises:
            SettingsError: Ray is not installed.
        """
        if importlib.util.find_spec("ray") is None:
            raise SettingsError("`ray` needs Ray: pip install 'headstart[ray]'")
        self._settings = ray_settings

    def __call__(
        self,
        plan: ShardPlan,
        jobs: Jobs,
        *,
        out: Path,
        table: Table,
        settings: ExtractSettings,
        reuse: tuple[Path, ...],
        overwrite: bool,
        store: ShardStore | None,
        report: Report,
    ) -> Iterator[Made]:
        """Make shards; yield what was made, as it is made.

        Raises:
            SettingsError: the table is in memory, or the cluster cannot be reached.
            HeadstartError: a shard failed.
        """
        if table.memory is not None:
            raise SettingsError("a table in memory cannot be read by workers of Ray; write it to a file")
        encoder = settings.encoder
        if encoder is not None and Path(encoder).is_dir():
            settings = dataclasses.replace(settings, encoder=str(Path(encoder).resolve()))
        work = _Work(
            out=out.resolve(),
            table=dataclasses.replace(table, remote=None, files=tuple(file.resolve() for file in table.files)),
            url=None if table.remote is None else table.remote.url,
            settings=settings,
            reuse=tuple(path.resolve() for path in reuse),
            overwrite=overwrite,
            store=None if store is None else store.url,
        )
        shown = _Progress(plan, report)
        with _connected(self._settings.address) as ray:
            workers, options = _resources(ray, self._settings.workers)
            workers = min(workers, max(1, len(jobs)))
            report(Note(f"{workers:,} workers on Ray, each with {_in_words(options)}"))
            pool = _RayPool(ray, work, options)
            queue = ShardQueue(
                pool,
                workers=workers,
                deadline=self._settings.deadline,
                on_state=shown.state,
                on_lost=lambda job, why: report(Note(f"{'a worker' if job is None else job} was lost: {why}")),
            )
            for made in queue.run(jobs):
                shown.made(made)
                yield made


class _Progress:
    """Reports the progress of all workers: by shards, because what a worker does is not known before it is done."""

    def __init__(self, plan: ShardPlan, report: Report) -> None:
        self._rows, self._report, self._done, self._tokens = plan.scan.rows, report, 0, 0

    def made(self, made: Made) -> None:
        self._done += 0 if made.common else made.rows
        self._tokens += made.tokens_encoded

    def state(self, state: State) -> None:
        detail = f"{state.running:,} workers at it, the slowest for {duration(state.longest)}"
        self._report(Step("encoding", self._done, self._rows, "rows", self._tokens, detail))


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect to a cluster of Ray, or start one on this machine.

    Ray listens on all interfaces, whatever address it is told to be at: docs/shards.md says so.

    Raises:
        SettingsError: there is no such cluster, or another one is connected.
    """
    _require_answer(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
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
