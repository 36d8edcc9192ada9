"""Joining shards: one file that names them, or one file with a copy of all their rows."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...cache.errors import DamagedError, FormatError
from ...cache.joined import SHARDS, JoinedRows, ShardEntry, create_joined, kind_of, require_descriptors
from ...cache.reader import Cache, JoinedCache, open_cache, open_shard, shard_fields
from ...cache.siblings import followed, shards_path
from ...cache.workspace import replace_file, workspace
from ...cache.writer import CacheWriter, copy_rows, encode_document
from ..progress import Report, Step
from .plan import count_over_parts, open_named
from .shards import shard_files

_SUMMED = (
    *("rows", "skipped_rows", "truncated_rows", "tokens", "tokens_encoded", "sequences_encoded", "kept_blocks"),
    *("reused_rows", "halved_batches", "encode_seconds", "measured_tokens", "measured_seconds", "seconds"),
    *("sequences", "split_rows"),
)
"""Fields of a record that are summed over the shards."""
_OF_COMMON = ("tokens_encoded", "sequences_encoded", "encode_seconds", "seconds", "halved_batches")
"""Those of them to which the files of common texts add."""


def open_shards(paths: Sequence[Path]) -> list[Cache]:
    """Open the shards of one table.

    Raises:
        FormatError, DamagedError: one of them cannot be used, or is no shard.
        DamagedError: they do not fit together: one is missing, or has another identity or other labels.
    """
    require_descriptors(paths[0].parent, len(paths))
    shards = [open_named(path, path.name) for path in paths]
    next_row, first = 1, shards[0]
    for number, shard in enumerate(shards, 1):
        fields = shard_fields(shard)
        if "id" not in fields:
            raise FormatError(f"{shard.path} is no shard, so it cannot be joined")
        if (fields.get("number"), fields.get("first_row")) != (number, next_row):
            raise DamagedError(f"{shard.path.parent} lacks shard {number}: run the same headstart extract again")
        alike = (shard.identity, shard.label_names, kind_of(shard.layout))
        if alike != (first.identity, first.label_names, kind_of(first.layout)):
            raise DamagedError(f"{shard.path} has another identity, other features or other labels than {first.path}")
        next_row += shard.rows
    return shards


def find_shards(out: Path) -> list[Path]:
    """The files of a joined cache's shards, as their names and plans say.

    Raises:
        FormatError: there are none.
        DamagedError: one is missing, or there are two with one number.
    """
    folder = shards_path(out)
    paths = shard_files(folder)
    if not paths:
        raise FormatError(f"{folder} holds no shards; make them with: headstart extract TABLE --out {out} --shards N")
    numbers = [int(path.name[:5]) for path in paths]
    last = shard_fields(open_shard(paths[-1])).get("of")
    count = max(numbers[-1], last if isinstance(last, int) else 0)
    if missing := sorted(set(range(1, count + 1)) - set(numbers)):
        raise DamagedError(f"{folder} lacks shard {missing[0]} of {count}: run the same headstart extract again")
    if len(set(numbers)) < len(numbers):
        raise DamagedError(f"{folder} holds shards of two tables: run headstart extract again, with `update=True`")
    return paths


def join_shards(
    out: Path, shards: Sequence[Cache], *, common: Sequence[Cache] = (), seconds: float | None = None
) -> None:
    """Write a joined cache over some shards, which takes its name in one step. The lock of ``out`` is held.

    Args:
        out: The joined cache.
        shards: As `open_shards` returns them.
        common: The files of common texts that this run encoded, for the record.
        seconds: What the run took; None for the sum over the shards.

    Raises:
        StorageError: the file cannot be written, or there are too many shards.
    """
    record = _record(shards, common, seconds)
    folder, first = followed(out).parent, shards[0]
    entries = [
        ShardEntry(
            file=Path(os.path.relpath(shard.path.resolve(), folder.resolve())).as_posix(),
            rows=shard.rows,
            id=shard_fields(shard)["id"],
        )
        for shard in shards
    ]
    documents = {
        "identity": first.identity.to_json().encode(),
        "plan": encode_document(_plan(first)),
        **({} if first.label_names is None else {"label_names": encode_document(list(first.label_names))}),
        "record": encode_document(record),
        SHARDS: encode_document(entries),
    }
    with workspace(out) as work:
        layouts = [shard.layout for shard in shards]
        create_joined(work / "new", entries=entries, layouts=layouts, documents=documents)
        replace_file(work / "new", out)


def copy_joined(cache: JoinedCache, out: Path, report: Report) -> None:
    """Write the rows of a joined cache to one file, block by block. The lock of ``out`` is held.

    Raises:
        DamagedError: a shard is damaged, or was changed meanwhile.
        StorageError: the file cannot be written.
    """
    with workspace(out) as work:
        blocks = -(-cache.rows // cache.layout.block_rows)
        copy_rows(
            cache,
            work / "new",
            plan=cache.plan,
            on_block=lambda block: report(Step("copying", block + 1, blocks, "blocks")),
        )
        cache.require_unchanged()
        with CacheWriter(work / "new") as writer:
            writer.finish(cache.record, out)


def is_joined(out: Path, ids: Sequence[str]) -> bool:
    """Whether the file is a joined cache of the shards with these ids, all of which are there."""
    if not out.exists():
        return False
    try:
        cache = open_cache(out)
    except DamagedError:
        return False
    return isinstance(cache, JoinedCache) and [shard_fields(shard).get("id") for shard in cache.files] == list(ids)


def _plan(shard: Cache) -> dict[str, Any]:
    return {name: value for name, value in shard.plan.items() if name != "shard"}


def _record(shards: Sequence[Cache], common: Sequence[Cache], seconds: float | None) -> Mapping[str, Any]:
    """The record of the whole, from those of the shards. Distinct texts and sequences are counted over all rows."""
    records: list[Mapping[str, Any]] = [shard.record for shard in shards]
    shared: list[Mapping[str, Any]] = [cache.record for cache in common]
    sums = {name: sum(record[name] for record in records) for name in _SUMMED if name in records[0]}
    sums |= {name: sums[name] + sum(record[name] for record in shared) for name in _OF_COMMON}
    sums["seconds"] = sums["seconds"] if seconds is None else seconds
    arrays = [_joined(shards, name) for name in ("text_hashes", "token_hashes")]
    labels = None if shards[0].labels is None else _joined(shards, "labels")
    distinct, conflicting = count_over_parts(arrays[0], labels)
    speed = sums["tokens_encoded"] / sums["encode_seconds"] if sums["encode_seconds"] else None
    return {
        **records[0],
        **sums,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "distinct_texts": distinct,
        "conflicting_texts": conflicting,
        "distinct_sequences": count_over_parts(arrays[1], None)[0],
        "tokens_per_second": speed,
    }


def _joined(shards: Sequence[Cache], name: str) -> Any:
    return JoinedRows([getattr(shard, name) for shard in shards])
