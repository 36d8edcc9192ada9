"""Rows appended to a joined cache, in shards of their own: what is there is not written again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...cache.errors import DamagedError, FormatError, OutputExistsError, SettingsError, TableError
from ...cache.hashing import digest
from ...cache.joined import ShardEntry
from ...cache.reader import Cache, Labels, open_cache, open_shard, shard_entries, shard_fields
from ...cache.workspace import remove_leftovers
from ..encoders.session import EncoderSession
from ..progress import Action, Note, Outcome, Report
from ..settings import ExtractSettings, Storage
from ..tables.scan import TableScan, scan_table
from .fill import outcome_counts
from .joining import is_joined, open_shards
from .plan import Before, Shard, ShardPlan, load_plan, save_plan
from .sharded import Backend, ShardedRequest, clean, finish, make_shards, other_shards, plan_for

_OF_FEATURES = (
    *("features", "prompt", "prefix", "max_length", "long", "overlap", "chunk_pooling", "precision", "storage"),
    *("task", "order", "block_rows", "window_rows", "revision"),
)
"""Settings that are the cache's own."""


def open_appendable(path: Path) -> Cache:
    """Open a cache that rows can be appended to; of a joined one its first shard, for others may be lost.

    Raises:
        FormatError: it is one file.
        DamagedError: its first shard is missing or damaged.
    """
    entries = shard_entries(path)
    if not entries:
        raise FormatError(
            f"{path} is a cache of one file, to which no rows are appended; put them into its table, and extract that "
            "with `update=True`, which encodes only new texts (with `shards` once, rows can be appended from then on)"
        )
    return _open_all([path.parent / entries[0]["file"]])[0]


def settings_to_append(
    out: Path, cache: Cache, settings: ExtractSettings, report: Report
) -> tuple[ExtractSettings, EncoderSession]:
    """Take the settings of the features from a cache.

    Args:
        out: The joined cache.
        cache: What `open_appendable` returns.
        settings: How to read the table, and on which device to encode; the encoder, if it is no longer where the cache
            says.
        report: Receives progress and notes.

    Returns:
        The settings, and the encoder.

    Raises:
        SettingsError: a setting is given that is the cache's own.
        IdentityError, EncoderError, DamagedError: as for `EncoderSession.from_identity`.
    """
    usual = ExtractSettings()
    for name in _OF_FEATURES:
        if getattr(settings, name) != getattr(usual, name):
            raise SettingsError(f"`{name}` has no effect with `append=True`: it is that of {out}")
    session = EncoderSession.from_identity(
        cache.identity,
        cache.record["encoder"],
        where=out,
        encoder=settings.encoder,
        device=settings.device,
        batch_tokens=settings.batch_tokens or cache.plan["batch_tokens"],
        allow_pickled_weights=settings.allow_pickled_weights,
        report=report,
    )
    own = dataclasses.replace(
        session.settings,
        storage=Storage(cache.layout.storage),
        block_rows=cache.layout.block_rows,
        window_rows=cache.plan["window_rows"],
    )
    return own, session


def append_rows(request: ShardedRequest, backend: Backend | None = None) -> Outcome:
    """Encode the rows of a table into shards, and let a joined cache name these too.

    Where the cache ends with these rows already, its last shards are made whole and get the table's labels: so a run
    that was interrupted is simply run again.

    Args:
        request: The joined cache, the rows, and how many shards they become.
        backend: As for `extract_shards`.

    Raises:
        TableError: the table has labels of another kind, or with other names, or no labels where the cache has some.
        SettingsError: there would be too many shards.
        DamagedError: a shard that comes before these rows is missing or damaged.
        OutputExistsError: there are shards of other rows, whose appending was interrupted.
        HeadstartError: as for `extract_shards`.
    """
    with request.hold():
        remove_leftovers(request.out)
        started = time.perf_counter()
        plan, before = _planned(request)
        made = make_shards(request, plan, before, backend)
        if is_joined(request.out, [*(_id(path) for path in before), *plan.ids]):
            request.report(Note(f"{request.out} is current: it ends with these {plan.scan.rows:,} rows already"))
            counts, action = outcome_counts(open_cache(request.out).record, filled=False), Action.CURRENT
        else:
            counts, action = finish(request, plan, made, started, before=before)
        clean(request, {*(path.name for path in before), *(shard.file for shard in plan.shards)})
    return Outcome(command="extract", output=request.out, action=action, counts=counts)


def _planned(request: ShardedRequest) -> tuple[ShardPlan, list[Path]]:
    """Plan the shards of the rows, and list the shards that come before them."""
    out, entries = request.out, shard_entries(request.out)
    key = digest(request.key.encode(), *(entry["id"].encode() for entry in entries)).hex()
    plan = None if request.table.memory is not None else load_plan(out, key)
    paths = [out.parent / entry["file"] for entry in entries]
    if plan is None:
        plan = _plan(request, scan_table(request.table, request.report), entries, paths)
        if others := other_shards(out, plan, paths):
            raise OutputExistsError(
                f"{others[0]} is of other rows, whose appending was interrupted: append these first, or remove the file"
            )
        save_plan(plan, out, key)
    return plan, paths[: plan.before.shards]


def _plan(request: ShardedRequest, scan: TableScan, entries: Sequence[ShardEntry], paths: Sequence[Path]) -> ShardPlan:
    """Plan the shards of the rows: again, where they are the last ones already, or else after all that are there."""
    lasting = np.cumsum([entry["rows"] for entry in entries[:0:-1]])  # of the last shards, one more each
    for count in (np.flatnonzero(lasting == scan.rows) + 1).tolist():
        again = _plan_after(dataclasses.replace(request, shards=count), scan, paths[:-count])
        if all(map(_is_of, again.shards, entries[-count:], paths[-count:])):
            return again
    return _plan_after(request, scan, paths)


def _plan_after(request: ShardedRequest, scan: TableScan, before: Sequence[Path]) -> ShardPlan:
    """Plan the shards of rows that come after some shards."""
    shards = _open_all(before)
    whole = _with_labels_of(shards[0], scan, request)
    rows = sum(shard.rows for shard in shards)
    skipped = sum(shard.record["skipped_rows"] for shard in shards)
    return plan_for(request, whole, Before(shards=len(shards), rows=rows, table_rows=rows + skipped))


def _open_all(paths: Sequence[Path]) -> list[Cache]:
    """Open the shards that come before the rows."""
    if lost := [path for path in paths if not path.exists()]:
        raise DamagedError(
            f"{lost[0]} is missing; extract the whole table, with the rows that were appended to it, with "
            "`update=True`: what the other shards hold is not encoded again"
        )
    return open_shards(paths)


def _is_of(shard: Shard, entry: ShardEntry, path: Path) -> bool:
    """Whether a joined cache names a shard, or the same one with other labels at this path."""
    if entry["id"] == shard.id:
        return True
    try:
        return shard_fields(open_shard(path)).get("work") == shard.work
    except (DamagedError, FormatError):
        return False


def _id(path: Path) -> str:
    return str(shard_fields(open_shard(path)).get("id"))


def _with_labels_of(cache: Cache, scan: TableScan, request: ShardedRequest) -> TableScan:
    """Return what was found in a table with its labels as the cache numbers them.

    Raises:
        TableError: they do not fit.
    """
    labels, names, source, out = scan.labels, cache.label_names, request.table.source, request.out
    if (labels is None) != (cache.labels is None):
        lacks, has = (source, out) if labels is None else (out, source)
        raise TableError(f"{source} cannot be appended to {out}: {lacks} has no labels, and {has} has labels")
    if scan.label_kind is not cache.label_kind:
        raise TableError(
            f"{source} cannot be appended to {out}: its labels are of the kind {scan.label_kind}, those of the "
            f"cache {cache.label_kind}"
        )
    if labels is None or names is None or scan.label_names == names:
        return scan
    found = scan.label_names or ()
    if new := [name for name in found if name not in names]:
        raise TableError(
            f"{source} has the label {new[0]!r}, and {out} does not; rows of a new class are not appended: put "
            "them into its table, and extract that with `update=True`, which encodes only new texts"
        )
    places = np.array([names.index(name) for name in found], np.int64)
    numbered: Labels
    if labels.ndim == 2:
        numbered = np.zeros((len(labels), len(names)), labels.dtype)
        numbered[:, places] = labels
    else:
        numbered = places[labels]
    return dataclasses.replace(scan, labels=numbered, label_names=names)
