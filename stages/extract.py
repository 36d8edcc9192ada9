"""Stage one: the frozen encoder reads every distinct text of a table once, and its features go into one file."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache.errors import DamagedError, OutputExistsError, SettingsError, storage_errors
from ..cache.layout import checked_seal
from ..cache.lock import hold
from ..cache.reader import Cache, open_cache
from ..cache.siblings import partial_path, superseded_paths
from ..cache.workspace import remove_leftovers
from .encoders.files import require_encoder_name
from .encoders.session import EncoderSession
from .extraction.fill import compare_with_float32, fill_cache, note_truncated, outcome_counts
from .extraction.resume import (
    CacheRequest,
    UnfinishedCache,
    finished_serves,
    open_source,
    open_unfinished,
    relabel,
    remove_superseded,
    require_writable,
)
from .extraction.reuse import ReusableCaches, open_reusable
from .progress import Action, Note, Outcome, Report, Step, in_notebooks
from .settings import ExtractSettings, settings_from, takes
from .tables.formats import table_name
from .tables.labels import LabelRules
from .tables.scan import scan_table
from .tables.table import Table, open_table

if TYPE_CHECKING:
    from .extraction.sharded import Backend, ShardedRequest, ShardsLeft


@takes(ExtractSettings)
def extract(
    table: Any,
    out: str | os.PathLike[str],
    settings: ExtractSettings | None = None,
    *,
    labels: Sequence[str | int] | None = None,
    update: bool = False,
    reuse: Sequence[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    wait: bool = False,
    shards: int | None = None,
    shard: str | None = None,
    append: bool = False,
    store: str | os.PathLike[str] | None = None,
    ray: str | None = None,
    workers: int | None = None,
    deadline: float | None = None,
    report: Report = in_notebooks,
    **options: Any,
) -> Path:
    """Encode a table's texts into a cache, doing only what is not done yet.

    A current cache stays as it is. A cache that differs in its labels alone gets the new labels, and nothing is
    encoded. An unfinished cache is resumed.

    Args:
        table: A CSV, TSV, text, JSON lines, Parquet or Arrow file, or a folder of files of one of these kinds. In
            memory: a sequence of texts, a mapping of columns, an Arrow table, or a DataFrame.
        out: The cache to write.
        settings: See `ExtractSettings`.
        labels: One label per text, where ``table`` is a sequence of texts.
        update: Where ``out`` is a cache of other rows, replace it with one of the table's rows, and encode only the
            texts that it lacks. The old cache stays whole until the new one takes its place.
        reuse: Other caches of the same identity. Rows that they hold are copied instead of encoded.
        overwrite: Encode again and replace ``out``, which stays whole until the new cache takes its place.
        wait: If another run is writing ``out``, wait until that run has ended.
        shards: Divide the rows into so many files, the shards, in a folder beside ``out``, which names them. None: one
            file, or as many shards as ``out`` has.
        shard: Make one of them: ``3/16`` is the third of 16. Any number of such runs may work at once, on machines that
            share the folder; the one that ends last writes ``out``.
        append: Add the table's rows to the joined cache ``out``, as one shard, or as many as ``shards`` says; nothing
            that it holds is written again. The settings of the features are the cache's own, and are left out. The
            cache's encoder is taken, unless ``encoder`` says where it is now.
        store: URL of a folder on an object store, such as ``s3://bucket/large``, which holds the shards, too. What it
            holds is not made again, and what is made is uploaded. So runs with ``shard`` need no folder in common; none
            of them writes ``out``: `join` does, or a run with ``shards``.
        ray: Make the shards with Ray (extra ``ray``): on this machine (``local``), or on the cluster at this address.
        workers: How many processes of Ray make shards; None: one for each GPU, or for each machine without.
        deadline: Seconds that a shard may take on Ray, before another worker gets it. None: ten times the median of the
            shards that are done, at least 10 minutes.
        report: Receives progress, notes, and one `Outcome` at the end. In a notebook, progress is shown by default.
        options: Settings by name, instead of ``settings``.

    Returns:
        The cache's path.

    Raises:
        TableError: the table cannot be read, has a bad row, or changes while it is read.
        EncoderError: the encoder cannot be found or read, or gives a feature that is not finite.
        IdentityError: a cache to reuse has another encoder or other settings.
        OutputExistsError: ``out``, or an unfinished cache of that name, holds something else.
        BusyError: another run is writing ``out``.
        StorageError: the machine cannot read or write, or the store fails.
    """
    settings, out = settings_from(ExtractSettings, settings, options), Path(out)
    if append:
        unused = {"update": update, "overwrite": overwrite, "shard": shard is not None, "store": store is not None}
        for name, given in unused.items():
            if given:
                raise SettingsError(f"`{name}` has no effect with `append=True`")
        on_ray = None if ray is None else _on_ray(ray, workers, deadline)
        return _append(
            table, out, settings, labels, reuse=reuse, wait=wait, shards=shards, backend=on_ray, report=report
        )
    shared = _Options(settings=settings, update=update, overwrite=overwrite, wait=wait, report=report)
    opened = _open_table(table, out, settings, labels)
    if shard is not None and shards is not None:
        raise SettingsError("`shard` says how many shards there are, and so does `shards`; leave out one of them")
    if shards is None and shard is None:
        shards = _shards_of(out)
    if ray is not None and shards is None:
        raise SettingsError("`ray` makes all shards of a cache; say how many with `shards`, and leave out `shard`")
    asked = shards if shard is None else shard
    if store is not None and asked is None:
        raise SettingsError("`store` holds shards; say how many with `shards`, or which one with `shard`")
    if asked is None:
        return _extract_table(opened, out, reuse, shared)
    backend = None if ray is None else _on_ray(ray, workers, deadline)
    return _extract_shards(opened, out, reuse, shared, asked=asked, store=store, backend=backend)


def plan_shards(
    table: Any,
    out: str | os.PathLike[str],
    settings: ExtractSettings,
    *,
    shards: int | None = None,
    update: bool = False,
    overwrite: bool = False,
    wait: bool = False,
    store: str | os.PathLike[str] | None = None,
    report: Report = in_notebooks,
) -> ShardsLeft:
    """Plan a table's shards, for runs of `extract` that make one each, and find out which are left to make.

    Args:
        table, out, settings, shards, update, overwrite, wait, store, report: As for `extract`.

    Raises:
        SettingsError: it is not said how many shards there are.
        HeadstartError: as for `extract`.
    """
    out = Path(out)
    shared = _Options(settings=settings, update=update, overwrite=overwrite, wait=wait, report=report)
    opened = _open_table(table, out, settings)
    count = _shards_of(out) if shards is None else shards
    if count is None:
        raise SettingsError("say how many shards there are, with `shards`")
    from .extraction.sharded import shards_left

    return shards_left(_sharded(opened, out, (), shared, count, store))


def _on_ray(address: str, workers: int | None, deadline: float | None) -> Backend:
    """The backend that makes shards on Ray."""
    from .extraction.on_ray import RayBackend
    from .ray_pool import RaySettings

    return RayBackend(RaySettings(address=address, workers=workers, deadline=deadline))


@takes(ExtractSettings)
def extract_tables(
    tables: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    settings: ExtractSettings | None = None,
    *,
    update: bool = False,
    reuse: Sequence[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    wait: bool = False,
    report: Report = in_notebooks,
    **options: Any,
) -> list[Path]:
    """Encode several tables into one cache each, with one encoder; texts that they share are encoded once.

    Args:
        tables: Files or folders; each gives its name to its cache: ``train.csv`` becomes ``train.h5``.
        folder: The folder of the caches; it is made where it is missing.
        settings: As for `extract`, like the other arguments; ``report`` receives one `Outcome` for each cache.

    Returns:
        The caches' paths, in the order of the tables.

    Raises:
        OutputExistsError: two tables have the same name, or ``folder`` is a file.
        HeadstartError: as for `extract`; the caches of the tables before stay.
    """
    settings, folder = settings_from(ExtractSettings, settings, options), Path(folder)
    shared = _Options(settings=settings, update=update, overwrite=overwrite, wait=wait, report=report)
    outs = [folder / f"{table_name(table)}.h5" for table in tables]
    if twice := next((out for out in outs if outs.count(out) > 1), None):
        raise OutputExistsError(f"two tables would both be written to {twice}; rename one of them")
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; several tables go into a folder: choose another `out`")
    with storage_errors(f"cannot make the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    opened = [_open_table(table, out, settings) for table, out in zip(tables, outs, strict=True)]
    for source in opened:
        source.require_columns()
    for number, (source, out) in enumerate(zip(opened, outs, strict=True)):
        _extract_table(source, out, [*reuse, *outs[:number]], shared)
    return outs


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    """What the tables of one command have in common."""

    settings: ExtractSettings
    update: bool
    overwrite: bool
    wait: bool
    report: Report

    def __post_init__(self) -> None:
        require_encoder_name(self.settings.encoder)
        if self.update and self.overwrite:
            raise SettingsError("`update=True` keeps what is there and `overwrite=True` does not; choose one of them")

    @functools.cached_property
    def session(self) -> EncoderSession:
        return EncoderSession(self.settings, self.report)


def _open_table(table: Any, out: Path, settings: ExtractSettings, labels: Sequence[str | int] | None = None) -> Table:
    """Open a table, and refuse an output that cannot be written, before a row is read or a library loaded."""
    opened = open_table(
        table,
        labels=labels,
        text_column=settings.text_column,
        pair_column=settings.text_pair_column,
        label_column=settings.label_column,
        label_rules=LabelRules(settings.task, settings.label_delimiter, settings.order),
        skip_bad_rows=settings.skip_bad_rows,
        label_optional=True,
        settings=settings,
    )
    require_writable(out, opened)
    return opened


def _shards_of(out: Path) -> int | None:
    """How many shards the joined cache at an output has; None where there is none."""
    try:
        return checked_seal(out).shards or None if out.exists() else None
    except DamagedError:
        return None


def _extract_table(table: Table, out: Path, reuse: Sequence[str | os.PathLike[str]], options: _Options) -> Path:
    """Extract one opened table, as `extract` says."""
    report, session = options.report, options.session
    with hold(out, wait=options.wait, note=lambda text: report(Note(text))):
        remove_leftovers(out)
        started = time.perf_counter()
        prepared = _prepare(table, out, reuse, options)
        if isinstance(prepared, Outcome):
            outcome = prepared
        else:
            unfinished, caches = prepared
            superseded = superseded_paths(out)
            caches += open_reusable(superseded, session.identity, options.settings.storage, superseded=True)
            record = fill_cache(
                unfinished,
                out,
                table=table,
                session=session,
                reusable=ReusableCaches(caches, report),
                started=started,
                report=report,
            )
            remove_superseded(out)
            note_truncated(record, session.identity, report)
            counts = outcome_counts(record, filled=True)
            outcome = Outcome(command="extract", output=out, action=Action.MADE, counts=counts)
    report(outcome)
    return out


def _extract_shards(
    table: Table,
    out: Path,
    reuse: Sequence[str | os.PathLike[str]],
    options: _Options,
    *,
    asked: int | str,
    store: str | os.PathLike[str] | None,
    backend: Backend | None,
) -> Path:
    """Extract one opened table in shards: all of so many, and the joined cache; or one of them, such as ``3/16``."""
    # imported here, for one file does not need it
    from .extraction.sharded import extract_one_shard, extract_shards, parse_shard

    number, count = (None, asked) if isinstance(asked, int) else parse_shard(asked)
    request = _sharded(table, out, reuse, options, count, store)
    outcome = extract_shards(request, backend) if number is None else extract_one_shard(request, number)
    options.report(outcome)
    return outcome.output


def _sharded(
    table: Table,
    out: Path,
    reuse: Sequence[str | os.PathLike[str]],
    options: _Options,
    shards: int,
    store: str | os.PathLike[str] | None,
) -> ShardedRequest:
    from .extraction.shard_store import ShardStore
    from .extraction.sharded import ShardedRequest

    opened = None if store is None else ShardStore(store)
    if opened is not None:
        opened.require_writable()
    return ShardedRequest(
        out=out,
        table=table,
        session=options.session,
        settings=options.settings,
        shards=shards,
        reuse=tuple(map(Path, reuse)),
        update=options.update,
        overwrite=options.overwrite,
        wait=options.wait,
        store=opened,
        report=options.report,
    )


def _append(
    table: Any,
    out: Path,
    settings: ExtractSettings,
    labels: Sequence[str | int] | None,
    *,
    reuse: Sequence[str | os.PathLike[str]],
    wait: bool,
    shards: int | None,
    backend: Backend | None,
    report: Report,
) -> Path:
    """Append the rows of a table to a joined cache."""
    from .extraction.appending import append_rows, open_appendable, settings_to_append
    from .extraction.sharded import ShardedRequest

    cache = open_appendable(out)
    opened = open_source(cache, table, settings, labelled=cache.labels is not None, labels=labels)
    require_writable(out, opened)
    own, session = settings_to_append(out, cache, settings, report)
    request = ShardedRequest(
        out=out,
        table=opened,
        session=session,
        settings=own,
        shards=shards or 1,
        reuse=tuple(map(Path, reuse)),
        wait=wait,
        report=report,
    )
    outcome = append_rows(request, backend)
    report(outcome)
    return outcome.output


def _prepare(
    table: Table, out: Path, reuse: Sequence[str | os.PathLike[str]], options: _Options
) -> tuple[UnfinishedCache, list[Cache]] | Outcome:
    """Scan a table, and find out what there is to do.

    The scan's arrays take 24 bytes of memory a row. They are gone when this function returns: the unfinished cache has
    them in its file.

    Returns:
        The unfinished cache to fill, and the finished caches whose rows it reuses; or the outcome, where the finished
        cache serves.
    """
    report, session, settings = options.report, options.session, options.settings
    scan = scan_table(table, report)
    request = CacheRequest(
        out=out,
        table=table.source,
        scan=scan,
        identity=session.identity,
        storage=settings.storage,
        block_rows=settings.block_rows,
        update=options.update,
        overwrite=options.overwrite,
    )
    if out.exists() and not options.overwrite and (outcome := _use_finished(request, report)) is not None:
        return outcome
    paths = [out] if options.update and out.exists() else []
    paths += [Path(path) for path in reuse if Path(path).resolve() != out.resolve()]
    caches = open_reusable(paths, session.identity, settings.storage)  # refused before anything is written
    if caches and not session.is_loaded:
        from .extraction.reopen import reopen

        report(Step("loading the encoder", 0, 0, "files"))
        reopen(session, caches, scan)
    encoder = session.encoder
    if not caches:
        from .extraction.windows import require_known_words

        require_known_words(encoder, scan.top, table.source)
    compare_with_float32(session, scan.top)
    plan = session.plan(settings.window_rows)
    unfinished = open_unfinished(
        request, widths=encoder.widths, plan=plan, any_batch_tokens=session.any_batch_tokens, report=report
    )
    return unfinished, caches


def _use_finished(request: CacheRequest, report: Report) -> Outcome | None:
    """Use the finished cache at the output, with the table's labels; None where it has to be replaced."""
    cache = open_cache(request.out)
    if not finished_serves(request, cache):
        return None
    labels_hold = request.has_labels_of(cache)
    if labels_hold and request.has_numbers_of(cache):
        action = Action.CURRENT
        report(Note(f"{request.out} is current: the same rows, encoder and settings; nothing to encode"))
    else:
        relabel(request, cache)
        changed = "were removed" if request.scan.labels is None else "changed, and were written anew"
        action = Action.RELABELLED
        what = "the numbers of its rows in the table changed" if labels_hold else f"the labels {changed}"
        report(Note(f"{request.out}: {what}; nothing to encode"))
    if not partial_path(request.out).exists():  # a run was killed just before it removed them
        remove_superseded(request.out)
    counts = outcome_counts(cache.record, filled=False)
    return Outcome(command="extract", output=request.out, action=action, counts=counts)
