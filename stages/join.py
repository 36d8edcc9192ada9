"""Joining the shards of a cache again, or copying them into one file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..cache.errors import DamagedError, FormatError, OutputExistsError
from ..cache.layout import checked_seal
from ..cache.lock import hold
from ..cache.reader import JoinedCache, open_cache, shard_entries
from ..cache.siblings import followed
from ..cache.workspace import remove_leftovers
from .extraction.joining import copy_joined, find_shards, join_shards, open_shards
from .extraction.shard_store import ShardStore, fetch_shards
from .progress import Action, Note, Outcome, Report, Step, in_notebooks


def join(
    cache: str | os.PathLike[str],
    *,
    copy: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    wait: bool = False,
    report: Report = in_notebooks,
) -> Path:
    """Write a joined cache over the shards beside it; or copy the rows of a joined cache into one file.

    Args:
        cache: The joined cache. Its shards lie in the folder of its name with ``.shards`` at the end.
        copy: One file to write, instead: every shard is verified, and ``cache`` stays as it is.
        store: URL of the folder on an object store that holds the shards: those that are not here are downloaded. With
            ``copy``, ``cache`` is then written, too.
        overwrite: Replace the cache at ``copy``.
        wait: Wait until another run that is writing the output is done.
        report: Receives progress, notes, and one `Outcome` at the end.

    Returns:
        The path of what was written.

    Raises:
        FormatError: there are no shards, or ``cache`` is no joined cache and is to be copied.
        DamagedError: a shard is missing or damaged, here or in the store.
        SettingsError: ``store`` is no URL.
        OutputExistsError: ``copy`` exists, or ``cache`` is a file that is no joined cache.
        BusyError: another run is writing the output.
        StorageError: the machine cannot read or write, or the store fails.
    """
    path = Path(cache)
    out, rows = path if copy is None else Path(copy), 0
    opened = None if store is None else ShardStore(store)
    if copy is None or opened is not None:
        with hold(path, wait=wait, note=lambda text: report(Note(text))):
            remove_leftovers(path)
            rows = _join(path, opened, report)
    if copy is not None:
        with hold(out, wait=wait, note=lambda text: report(Note(text))):
            remove_leftovers(out)
            rows = _copy(path, out, overwrite=overwrite, report=report)
    report(Outcome(command="join", output=out, action=Action.MADE, counts={"rows": rows}))
    return out


def _join(path: Path, store: ShardStore | None, report: Report) -> int:
    """Join the shards beside a path, and those of a store; return their number of rows."""
    _require_joined(path)
    if store is not None:
        fetch_shards(store, path, report)
    found = find_shards(path)
    _require_all_named(path, found)
    shards = open_shards(found)
    join_shards(path, shards)
    return sum(shard.rows for shard in shards)


def _require_joined(path: Path) -> None:
    """Refuse an output that is no joined cache."""
    if os.path.lexists(followed(path)) and not checked_seal(path).shards:
        raise OutputExistsError(f"{path} is a cache of one file; it is never overwritten here, so move it elsewhere")


def _require_all_named(path: Path, found: Sequence[Path]) -> None:
    """Refuse to leave out shards that a joined cache names: of rows that were appended, no other shard tells."""
    try:
        named = shard_entries(path)
    except (DamagedError, FormatError):  # it is written again
        return
    if len(named) > len(found):
        raise DamagedError(
            f"{path} names {len(named):,} shards, and {len(found):,} are here: append the rows of the others again, or "
            f"remove {path} to join it without them"
        )


def _copy(path: Path, out: Path, *, overwrite: bool, report: Report) -> int:
    """Copy a joined cache; return its number of rows."""
    opened = open_cache(path)
    if not isinstance(opened, JoinedCache):
        raise FormatError(f"{path} is a cache of one file already; copy it as a file")
    if out.resolve() in [file.resolve() for file in (path, *(shard.path for shard in opened.shards))]:
        raise OutputExistsError(f"{out} is what is copied; choose another `copy`")
    if os.path.lexists(followed(out)):
        checked_seal(out)  # what is no cache is never overwritten
        if not overwrite:
            raise OutputExistsError(f"{out} exists already; choose another `copy`, or pass `overwrite=True`")
    opened.check(lambda block: report(Step("checking", block + 1, opened.layout.blocks, "blocks")))
    copy_joined(opened, out, report)
    return opened.rows
