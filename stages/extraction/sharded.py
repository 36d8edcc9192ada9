"""A table extracted in shards: planned, made, joined. What a run did stays, and the next one goes on from there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...cache.errors import DamagedError, OutputExistsError, SettingsError
from ...cache.hashing import digest
from ...cache.lock import hold
from ...cache.reader import Cache, open_cache, open_shard, shard_entries, shard_fields
from ...cache.seal import begins_as_cache
from ...cache.siblings import partial_path, plan_path, shards_path
from ...cache.workspace import remove_leftovers
from ..encoders.session import EncoderSession
from ..progress import Action, Note, Outcome, Report
from ..settings import ExtractSettings
from ..tables.scan import TableScan, scan_table
from ..tables.table import Table
from .fill import note_truncated, outcome_counts
from .joining import is_joined, join_shards, open_shards
from .plan import NOTHING, Before, ShardPlan, even_counts, load_plan, plan_shards, save_plan
from .resume import CacheRequest, finished_serves
from .shard_store import ShardStore, fetch_files
from .shards import Made, ShardJob, ShardRunner, is_whole, remove_others, shard_files


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardedRequest:
    """A joined cache that is asked for."""

    out: Path
    table: Table
    session: EncoderSession
    settings: ExtractSettings
    shards: int
    reuse: tuple[Path, ...] = ()  # other caches whose rows are copied
    update: bool = False
    overwrite: bool = False
    wait: bool = False
    store: ShardStore | None = None  # what holds the shards, too
    report: Report

    @property
    def key(self) -> str:
        """What a plan depends on. Equal keys have equal plans; a table in memory has none."""
        table = self.table
        read: list[Any] = [table.source, table.state(), table.skip_bad_rows]
        read += [dataclasses.asdict(each) for each in (table.columns, table.label_rules, table.settings)]
        how: list[Any] = [self.shards, self.settings.storage, self.settings.block_rows, self.settings.window_rows]
        how.append(self.session.identity.to_json())
        return digest(json.dumps([read, how], default=str).encode()).hex()

    def hold(self) -> contextlib.AbstractContextManager[None]:
        return hold(self.out, wait=self.wait, note=lambda text: self.report(Note(text)))


Backend = Callable[[ShardedRequest, ShardPlan, Sequence[ShardJob]], Iterator[Made]]
"""Makes shards, and yields what was done for each when it is done. Common texts come first."""


def extract_shards(request: ShardedRequest, backend: Backend | None = None) -> Outcome:
    """Make a joined cache and all its shards.

    Args:
        request: What is asked for.
        backend: Makes the shards; None: one after the other, in this process.

    Raises:
        OutputExistsError: the output, or the folder of its shards, holds something else.
        HeadstartError: as for `encode_table`.
    """
    with request.hold():
        remove_leftovers(request.out)
        started = time.perf_counter()
        plan, old = _planned(request)
        if request.store is not None:
            _runner(request, plan, old).exchange()
        if not request.overwrite and is_joined(request.out, plan.ids):
            request.report(Note(f"{request.out} is current: the same rows, encoder and settings; nothing to encode"))
            record = open_cache(request.out).record
            counts, action = outcome_counts(record, filled=False), Action.CURRENT
        else:
            made = make_shards(request, plan, old, backend)
            counts, action = finish(request, plan, made, started)
        clean(request, _files(plan))
        _clean_store(request, plan)
    return Outcome(command="extract", output=request.out, action=action, counts=counts)


def extract_one_shard(request: ShardedRequest, number: int) -> Outcome:
    """Make one shard of a joined cache; the run that makes the last one joins them, where there is no store.

    Any number of runs may make shards of one table at once, in any order. A shard that the store holds is not made, and
    not downloaded.

    Args:
        request: What is asked for.
        number: The shard's number, from 1.

    Raises:
        As `extract_shards`.
    """
    with dataclasses.replace(request, wait=True).hold():
        remove_leftovers(request.out)
        plan, old = _planned(request)
    shard, started = plan.shard(number), time.perf_counter()
    runner = _runner(request, plan, old)
    folder = runner.folder
    if runner.is_stored(shard) and request.store is not None:
        request.report(Note(f"{request.store.url_of(shard.file)} is there already; nothing to encode"))
        made = [Made(number=number, rows=0, skipped=True)]
    else:
        made = [runner.make(ShardJob(source.number, common=True)) for source in runner.sources(shard)]
        made.append(runner.make(ShardJob(number)))
    action = Action.CURRENT if made[-1].skipped else Action.MADE
    outcome = Outcome(command="extract", output=folder / shard.file, action=action, counts=_counts(made))
    if request.store is not None:
        _clean_store(request, plan)
        return outcome
    with dataclasses.replace(request, wait=True).hold():
        if all(is_whole(folder / each.file, each.id) for each in plan.shards):
            if not is_joined(request.out, plan.ids):
                finish(request, plan, made, started)
            clean(request, _files(plan))
    return outcome


@dataclasses.dataclass(frozen=True)
class ShardsLeft:
    """Which shards are left to make."""

    shards: int  # of all of them, how many there are
    left: tuple[int, ...]  # their numbers; none where the joined cache is current


def shards_left(request: ShardedRequest) -> ShardsLeft:
    """Plan the shards, and find out which of them are left to make.

    Where all are made and only to be joined, that is the last one: the run that is asked for it joins them.

    Raises:
        As `extract_shards`.
    """
    with request.hold():
        remove_leftovers(request.out)
        plan, old = _planned(request)
        if not request.overwrite and is_joined(request.out, plan.ids):
            clean(request, _files(plan))
            return ShardsLeft(request.shards, ())
        runner = _runner(request, plan, old)
        missing = [shard for shard in plan.shards if runner.is_missing(shard)]
        left = tuple(shard.number for shard in missing if not runner.is_stored(shard))
        return ShardsLeft(request.shards, left or (plan.last,))


def _planned(request: ShardedRequest) -> tuple[ShardPlan, list[Path]]:
    """Plan the shards, unless the plan of an earlier run serves; refuse what must stay.

    Returns:
        The plan, and the caches of other rows of this output, whose rows an update copies.
    """
    out = request.out
    in_memory = request.table.memory is not None
    plan = None if in_memory else load_plan(out, request.key)
    if plan is None:
        scan = scan_table(request.table, request.report)
        plan = plan_for(request, scan)
        old = _require_replaceable(request, plan)
        save_plan(plan, out, request.key)
    else:
        old = _require_replaceable(request, plan)
    return plan, old


def plan_for(request: ShardedRequest, scan: TableScan, before: Before = NOTHING) -> ShardPlan:
    """Plan the shards that a request asks for; ``before`` as for `plan_shards`."""
    settings = request.settings
    return plan_shards(
        scan,
        even_counts(scan.rows, request.shards),
        identity=request.session.identity,
        storage=settings.storage,
        block_rows=settings.block_rows,
        window_rows=settings.window_rows,
        before=before,
    )


def _require_replaceable(request: ShardedRequest, plan: ShardPlan) -> list[Path]:
    """Refuse an output that holds something else and must stay.

    Returns:
        The files whose rows are to be copied: of an output of other rows, of other shards, or of one file.

    Raises:
        OutputExistsError: it is such an output.
    """
    if request.overwrite:
        return []
    if request.store is not None:
        _take_over(request, plan, request.store)
    out = request.out
    if begins_as_cache(partial_path(out)):
        raise OutputExistsError(
            f"{partial_path(out)} is unfinished work on one file; finish it without `shards`, or remove it, or choose "
            "another `out`"
        )
    cache = _open_whole(out) if out.exists() else None
    if cache is not None:
        finished_serves(_as_request(request, plan), cache)  # refuses another one, unless it is updated
    held, works = [] if cache is None else [file.path for file in cache.files], {shard.work for shard in plan.shards}
    old = [path for path in held if shard_fields(open_shard(path)).get("work") not in works]
    others = other_shards(out, plan, held)
    if others and not request.update:
        raise OutputExistsError(
            f"{others[0]} is a shard of something else; to take over what such shards hold, pass `update=True`; to "
            "throw them away, `overwrite=True`; or choose another `out`"
        )
    return [*old, *others]


def other_shards(out: Path, plan: ShardPlan, held: Collection[Path]) -> list[Path]:
    """The whole shards beside an output that are neither of a plan nor among those that the output names."""
    others, works = [], {shard.work for shard in plan.shards}
    for path in shard_files(shards_path(out)):
        with contextlib.suppress(DamagedError):
            if path not in held and shard_fields(open_shard(path)).get("work") not in works:
                others.append(path)
    return others


def _take_over(request: ShardedRequest, plan: ShardPlan, store: ShardStore) -> None:
    """Download the shards of other rows that a store holds, for an update copies from them; else refuse them."""
    others = sorted(store.shards().keys() - _files(plan))
    if others and not request.update:
        raise OutputExistsError(
            f"{store.url_of(others[0])} is a shard of other rows, labels or settings; to take over what such shards "
            "hold, pass `update=True`; to throw them away, `overwrite=True`; or choose another `store`"
        )
    fetch_files(store, others, shards_path(request.out), request.report, skip_damaged=True)


def _open_whole(out: Path) -> Cache | None:
    """Open the cache at the output; None where it is joined, and a shard is missing or damaged."""
    try:
        return open_cache(out)
    except DamagedError:
        if not shard_entries(out):
            raise
        return None


def _as_request(request: ShardedRequest, plan: ShardPlan) -> CacheRequest:
    return CacheRequest(
        out=request.out,
        table=request.table.source,
        scan=plan.scan,
        identity=plan.identity,
        storage=plan.storage,
        block_rows=plan.block_rows,
        update=request.update,
        overwrite=request.overwrite,
    )


def make_shards(request: ShardedRequest, plan: ShardPlan, old: Sequence[Path], backend: Backend | None) -> list[Made]:
    """Make what is missing of a plan's shards.

    Args:
        request: What is asked for.
        plan: Its plan.
        old: Caches whose rows are copied, besides those of the request.
        backend: As for `extract_shards`.
    """
    runner = _runner(request, plan, old)
    jobs = _jobs(runner)
    if backend is None:
        return [runner.make(job) for job in jobs]
    return list(backend(dataclasses.replace(request, reuse=(*old, *request.reuse)), plan, jobs)) if jobs else []


def _jobs(runner: ShardRunner) -> list[ShardJob]:
    """What is left to do: files of common texts that a missing shard copies from, then the missing shards."""
    shards = runner.plan.shards
    sources = {source for shard in shards for source in runner.sources(shard)}
    return [
        *(ShardJob(source.number, common=True) for source in sorted(sources, key=lambda source: source.number)),
        *(ShardJob(shard.number) for shard in shards if runner.is_missing(shard)),
    ]


def _runner(request: ShardedRequest, plan: ShardPlan, old: Iterable[Path]) -> ShardRunner:
    return ShardRunner(
        plan,
        request.out,
        table=request.table,
        session=request.session,
        reuse=(*old, *request.reuse),
        overwrite=request.overwrite,
        store=request.store,
        report=request.report,
    )


def finish(
    request: ShardedRequest, plan: ShardPlan, made: Sequence[Made], started: float, *, before: Sequence[Path] = ()
) -> tuple[dict[str, float], Action]:
    """Join the shards, after those before them; return the counts for the outcome, and what was done."""
    folder = shards_path(request.out)
    shards = open_shards([*before, *(folder / shard.file for shard in plan.shards)])
    common = [folder / shard.common_file for shard in plan.shards if shard.common]
    alone = len(shards) == len({each.number for each in made if not (each.common or each.skipped)})
    seconds = time.perf_counter() - started if alone else None  # else they are summed over the shards
    join_shards(request.out, shards, common=[open_shard(path) for path in common if path.exists()], seconds=seconds)
    cache = open_cache(request.out)
    note_truncated(cache.record, cache.identity, request.report)
    encoded = any(each.sequences_encoded for each in made)
    relabelled = not encoded and bool(made) and all(each.reused_rows == each.rows for each in made)
    return _counts(made), Action.RELABELLED if relabelled else Action.MADE


def _counts(made: Iterable[Made]) -> dict[str, float]:
    names = ("rows", "sequences_encoded", "tokens_encoded", "reused_rows", "kept_blocks")
    each = list(made)
    sums = {name: sum(getattr(one, name) for one in each) for name in names}
    return sums | {"rows": sum(one.rows for one in each if not one.common)}


def _files(plan: ShardPlan) -> set[str]:
    return {shard.file for shard in plan.shards}


def clean(request: ShardedRequest, kept: set[str]) -> None:
    """Remove what only unfinished work needs, and the shards whose files' names are not among these."""
    remove_others(shards_path(request.out), kept)
    shutil.rmtree(plan_path(request.out), ignore_errors=True)


def _clean_store(request: ShardedRequest, plan: ShardPlan) -> None:
    """Once the store holds all shards, remove the common texts from it, and the shards that these replace."""
    if request.store is not None:
        common = {shard.common_file for shard in plan.shards if shard.common}
        request.store.clean(_files(plan), common, others=request.update or request.overwrite)


def parse_shard(text: str) -> tuple[int, int]:
    """Read a shard's number and how many there are: ``3/16``; a SettingsError where the text is none."""
    first, slash, second = text.partition("/")
    if slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise SettingsError(f"`shard` is {text[:80]!r}; write its number and how many there are: 3/16")
