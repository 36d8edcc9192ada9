"""Shards made by workers of Ray. Only numbers of shards and reports of what was made cross it: a worker maps the plan,
reads the table and writes its shards itself.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...cache.errors import DamagedError, SettingsError
from ..encoders.session import EncoderSession
from ..job_queue import State
from ..progress import Report, Step
from ..ray_pool import RaySettings, open_workers
from ..settings import ExtractSettings
from ..tables.remote import RemoteFile
from ..tables.table import Table
from ..units import duration
from .plan import ShardPlan, load_plan
from .shard_store import ShardStore
from .sharded import ShardedRequest
from .shards import Made, ShardJob, ShardRunner


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Work:
    """What a worker must know to make shards."""

    out: Path
    table: Table  # without its remote file
    url: str | None  # of that
    settings: ExtractSettings
    reuse: tuple[Path, ...]
    overwrite: bool
    store: str | None  # the URL

    def open(self) -> Callable[[ShardJob], Made]:
        """Map the plan, and find the encoder.

        Raises:
            DamagedError: there is no plan here.
        """
        plan, table = load_plan(self.out), self.table
        if plan is None:
            raise DamagedError(f"{self.out} has no plan here; all machines of the cluster must share its folder")
        if self.url is not None:
            remote = RemoteFile(self.url)
            table = dataclasses.replace(table, remote=remote, files=(remote.copy,))
        session = EncoderSession(self.settings)
        runner = ShardRunner(
            plan,
            self.out,
            table=table,
            session=session,
            reuse=self.reuse,
            overwrite=self.overwrite,
            store=None if self.store is None else ShardStore(self.store),
        )
        host = re.sub(r"[^\w-]", "-", socket.gethostname())[:64]
        return lambda job: runner.make(job, private=f".{host}-{os.getpid()}")


class RayBackend:
    """Makes shards with workers of Ray: a backend of `extract_shards`."""

    def __init__(self, ray_settings: RaySettings) -> None:
        self._settings = ray_settings

    def __call__(self, request: ShardedRequest, plan: ShardPlan, jobs: Sequence[ShardJob]) -> Iterator[Made]:
        """Make shards; yield what was made, as it is made.

        Raises:
            SettingsError: the table is in memory, or the cluster cannot be reached.
            HeadstartError: a shard failed.
        """
        table, settings, store = request.table, request.settings, request.store
        if table.memory is not None:
            raise SettingsError("a table in memory cannot be read by workers of Ray; write it to a file")
        encoder = settings.encoder
        if encoder is not None and Path(encoder).is_dir():
            settings = dataclasses.replace(settings, encoder=str(Path(encoder).resolve()))
        work = _Work(
            out=request.out.resolve(),
            table=dataclasses.replace(table, remote=None, files=tuple(file.resolve() for file in table.files)),
            url=None if table.remote is None else table.remote.url,
            settings=settings,
            reuse=tuple(path.resolve() for path in request.reuse),
            overwrite=request.overwrite,
            store=None if store is None else store.url,
        )
        shown = _Progress(plan, request.report)
        with open_workers(self._settings, work, most=len(jobs), report=request.report, on_state=shown.state) as queue:
            for common in (True, False):  # no shard is begun before the common texts are there
                for made in queue.run([job for job in jobs if job.common is common]):
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
