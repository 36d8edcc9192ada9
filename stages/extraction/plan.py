"""The plan by which a table's rows are divided into shards, each of which is made alone.

A plan follows from the table, the identity and the number of shards alone: whoever makes it makes the same one. While
the shards are made, it is kept in a folder beside the output, with what the first reading of the table found. A process
that makes one shard maps its part of that.

A text that occurs in several shards is *common*. It belongs to the shard where it occurs first, which encodes it into a
file of its own before any shard is made; all shards copy it from there. So each text is encoded once, and what a shard
holds does not depend on which shards were made before it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...cache.documents import read_json_file
from ...cache.errors import DamagedError, SettingsError, storage_errors
from ...cache.hashing import Hashes, digest
from ...cache.identity import Identity
from ...cache.label_kind import LabelKind
from ...cache.reader import Cache, Labels, open_shard, shard_fields
from ...cache.siblings import plan_path
from ...cache.workspace import MARK, replace_folder, workspace
from ..tables.scan import TableScan, count_texts
from ..tables.table import join_rows
from ..types import Indices, Mask

MOST_SHARDS = 1 << 14
"""A joined cache names its shards in its HDF5 structure, of at most 16 MiB."""
_PART_ROWS = 1 << 24
"""Rows whose hashes are compared at a time. They take about 115 bytes of memory each."""
SHARD_FILE = re.compile(r"\d{5}-[0-9a-f]{16}\.h5")
"""Names of shards' files; see `Shard.file`."""
_PLAN_FILE = "plan.json"
_OWN, _COPIED, _FIRST = 0, 1, 3
"""What a shard does with a row: encode it, copy it, or copy it from what the shard itself encoded for all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A run of the table's good rows."""

    number: int  # from 1; where rows are appended, after those that are there
    start: int  # its first row in the table, from 0
    stop: int
    id: str  # a hash of everything that decides its content
    work: str  # the same without the labels and the rows' numbers
    common: str  # the same of its file of common texts; "" where it has none

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def file(self) -> str:
        """Name of its file. The same name is the same content, so a file of an old plan is never in the way."""
        return f"{self.number:05}-{self.id[:16]}.h5"

    @property
    def common_file(self) -> str:
        """Name of the file of its common texts."""
        return f"{self.number:05}-{self.common[:16]}.common.h5"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Before:
    """What a joined cache holds already, where a table's rows are appended to it."""

    shards: int = 0
    rows: int = 0
    table_rows: int = 0  # with those that were left out, for the numbers of rows go on from there


NOTHING = Before()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """All shards of a table, and what the first reading of the table found."""

    shards: tuple[Shard, ...]
    before: Before = NOTHING
    scan: TableScan  # its arrays may be maps of the plan's files
    copies: npt.NDArray[np.uint8]  # (rows,) what a shard does with each row
    holds: npt.NDArray[np.uint8]  # (shards, bytes) for each shard a bit for each one whose common texts it holds
    identity: Identity
    storage: str
    block_rows: int
    window_rows: int

    @property
    def ids(self) -> list[str]:
        return [shard.id for shard in self.shards]

    @property
    def last(self) -> int:
        """The number of the last shard."""
        return self.before.shards + len(self.shards)

    def shard(self, number: int) -> Shard:
        return self.shards[number - 1 - self.before.shards]

    def first_row(self, shard: Shard) -> int:
        """The number of a shard's first row in the joined cache, from 1."""
        return self.before.rows + shard.start + 1

    def scan_of(self, shard: Shard) -> TableScan:
        """What the first reading found of a shard's rows."""
        return part_of_scan(self.scan, shard.start, shard.stop, self.before.table_rows)

    def sources(self, shard: Shard) -> list[Shard]:
        """The shards whose common texts a shard holds."""
        held = np.unpackbits(self.holds[shard.number - 1 - self.before.shards], count=len(self.shards))
        return [self.shards[place] for place in np.flatnonzero(held).tolist()]

    def scan_of_common(self, shard: Shard) -> TableScan:
        """The same of the common texts that belong to a shard. They have no labels."""
        whole, chosen = self.scan_of(shard), self.first(shard)
        assert whole.row_numbers is not None
        return dataclasses.replace(
            whole,
            text_hashes=whole.text_hashes[chosen],
            labels=None,
            label_names=None,
            label_kind=None,
            distinct_texts=int(chosen.sum()),
            conflicting_texts=0,
            skipped=0,
            row_numbers=whole.row_numbers[chosen],
        )

    def first(self, shard: Shard) -> Mask:
        """Which of a shard's rows are the first with a common text: (rows of the shard,) bool."""
        first: Mask = self.copies[shard.start : shard.stop] == _FIRST
        return first


def open_named(path: Path, name: str) -> Cache:
    """Open a shard, or a file of common texts, and refuse one that is not of this name.

    Raises:
        FormatError, DamagedError: it cannot be used, or is another one.
    """
    cache = open_shard(path)
    fields = shard_fields(cache)
    known = str(fields.get("common" if ".common" in name else "id"))
    if (f"{fields.get('number'):0>5}", known[:16]) != (name[:5], name[6:22]):
        raise DamagedError(f"{path} is another shard than its name says")
    return cache


def part_of_scan(scan: TableScan, start: int, stop: int, table_rows: int = 0) -> TableScan:
    """What the first reading of a table found of a run of its rows. Their numbers are always there.

    Args:
        scan: What was found.
        start, stop: The rows, from 0.
        table_rows: How many rows of other tables come before; the numbers go on from there.
    """

    def numbers_of(rows: slice) -> Indices:
        counted = np.arange(rows.start + 1, rows.stop + 1) if scan.row_numbers is None else scan.row_numbers[rows]
        return counted + table_rows

    rows = slice(start, stop)
    hashes, labels = scan.text_hashes[rows], None if scan.labels is None else scan.labels[rows]
    numbers = numbers_of(rows)
    before = int(numbers_of(slice(start - 1, start))[0]) if start else table_rows
    last = table_rows + scan.rows + scan.skipped if stop == scan.rows else int(numbers[-1])
    distinct, conflicting = count_texts(hashes, labels)
    return dataclasses.replace(
        scan,
        text_hashes=hashes,
        labels=labels,
        distinct_texts=distinct,
        conflicting_texts=conflicting,
        skipped=last - before - (stop - start),
        row_numbers=numbers,
        top=join_rows([]),
    )


def plan_shards(
    scan: TableScan,
    counts: Sequence[int],
    *,
    identity: Identity,
    storage: str,
    block_rows: int,
    window_rows: int,
    before: Before = NOTHING,
) -> ShardPlan:
    """Plan the shards of a table.

    Besides the scan it takes 1 byte of memory a row; for a moment 2 GB at most, and a byte for each pair of shards.

    Args:
        scan: What the first reading found.
        counts: How many rows each shard has; see `even_counts`.
        identity: The identity of the features.
        storage: How features are stored.
        block_rows: Rows that share a checksum.
        window_rows: Rows that are batched together.
        before: What is there already, if the rows are appended.

    Raises:
        SettingsError: with those that are there, there are more shards than a joined cache can name.
    """
    if before.shards + len(counts) > MOST_SHARDS:
        raise SettingsError(f"with these, there are more shards than {MOST_SHARDS:,}: make a new cache of fewer")
    bounds = np.cumsum([0, *counts])
    copies, holds = _find_common(scan.text_hashes, bounds)
    plan = ShardPlan(
        shards=(),
        before=before,
        scan=scan,
        copies=copies,
        holds=holds,
        identity=identity,
        storage=storage,
        block_rows=block_rows,
        window_rows=window_rows,
    )
    shards = []
    numbered = enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True), before.shards + 1)
    for number, (start, stop) in numbered:
        blank = Shard(number=number, start=start, stop=stop, id="", work="", common="")
        shards.append(_identified(blank, plan))
    return dataclasses.replace(plan, shards=tuple(shards))


def even_counts(rows: int, shards: int) -> list[int]:
    """How many rows each of some shards of a table gets.

    Raises:
        SettingsError: there are more shards than rows, or than a joined cache can name.
    """
    if not 1 <= shards <= min(rows, MOST_SHARDS):
        raise SettingsError(f"`shards` is {shards}; it must be from 1 to {min(rows, MOST_SHARDS):,} for {rows:,} rows")
    return [rows * (number + 1) // shards - rows * number // shards for number in range(shards)]


def _identified(shard: Shard, plan: ShardPlan) -> Shard:
    """Return a shard with its ids."""
    rows = slice(shard.start, shard.stop)
    copies, hashes = plan.copies[rows], plan.scan.text_hashes[rows]
    settings = [plan.storage, plan.block_rows, plan.window_rows, shard.number, plan.first_row(shard) - 1]
    how = json.dumps(settings).encode() + plan.identity.to_json().encode()
    work = digest(how, hashes, copies)
    scan = plan.scan
    named = json.dumps([scan.label_names, scan.label_kind]).encode()
    columns = [values[rows] for values in (scan.labels, scan.row_numbers) if values is not None]
    columns += [np.array(plan.before.table_rows)] if plan.before.table_rows else []
    first = copies == _FIRST
    common = digest(how, hashes[first]).hex() if first.any() else ""
    return dataclasses.replace(shard, id=digest(work, named, *columns).hex(), work=work.hex(), common=common)


def _find_common(hashes: Hashes, bounds: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Find texts that occur in several shards.

    Returns:
        (rows,) uint8: what a shard does with each row. And `ShardPlan.holds`.
    """
    copies, shards = np.zeros(len(hashes), np.uint8), len(bounds) - 1
    needed = np.zeros((shards, shards), bool)
    for rows in _by_hash(hashes):
        halves = np.ascontiguousarray(hashes[rows]).view("<u8")  # (rows, 2)
        order = np.lexsort([halves[:, 1], halves[:, 0]])  # copies of a text stay in the order of the table
        ordered, halves = rows[order], halves[order]
        begins = np.flatnonzero(np.append(True, (halves[1:] != halves[:-1]).any(axis=1)))
        lengths = np.diff(np.append(begins, len(rows)))
        holders = np.searchsorted(bounds, ordered, side="right") - 1
        several = holders[begins] != holders[begins + lengths - 1]
        copied = np.repeat(several, lengths)
        owners = np.repeat(holders[begins], lengths)
        copies[ordered[copied]] = _COPIED
        copies[ordered[begins[several]]] = _FIRST
        needed[holders[copied], owners[copied]] = True
    return copies, np.packbits(needed, axis=1)


def _by_hash(hashes: Hashes) -> Iterator[Indices]:
    """Yield the rows in parts, so that rows with one hash are in one part, in ascending order."""
    parts = max(1, -(-len(hashes) // _PART_ROWS))
    if parts == 1:
        yield np.arange(len(hashes))
        return
    width = -(-(1 << 16) // parts)
    for part in range(parts):
        found = []
        for start in range(0, len(hashes), _PART_ROWS):
            prefixes = np.ascontiguousarray(hashes[start : start + _PART_ROWS, :2]).view(">u2")[:, 0]
            found.append(np.flatnonzero(prefixes // width == part) + start)
        yield np.concatenate(found)


def count_over_parts(hashes: Hashes, labels: Labels | None) -> tuple[int, int]:
    """`count_texts` in bounded memory."""
    distinct = conflicting = 0
    for rows in _by_hash(hashes):
        found = count_texts(np.ascontiguousarray(hashes[rows]), None if labels is None else labels[rows])
        distinct, conflicting = distinct + found[0], conflicting + found[1]
    return distinct, conflicting


def save_plan(plan: ShardPlan, out: Path, key: str) -> None:
    """Write a plan beside its output, whose lock is held; ``key`` says what it is the plan of.

    Raises:
        StorageError: the folder cannot be written.
    """
    scan, folder = plan.scan, plan_path(out)
    fields = {
        "key": key,
        "shards": [dataclasses.asdict(shard) for shard in plan.shards],
        "before": dataclasses.asdict(plan.before),
        "identity": dataclasses.asdict(plan.identity),
        **{name: getattr(plan, name) for name in ("storage", "block_rows", "window_rows")},
        **{name: getattr(scan, name) for name in ("label_names", "label_kind", "skipped")},
        **{name: getattr(scan, name) for name in ("distinct_texts", "conflicting_texts")},
    }
    arrays = {"text_hashes": scan.text_hashes, "labels": scan.labels, "row_numbers": scan.row_numbers}
    with workspace(out) as work, storage_errors(f"cannot write {folder}"):
        new = work / "new"
        new.mkdir()
        (new / MARK).touch()
        for name, array in {**arrays, "copies": plan.copies, "holds": plan.holds}.items():
            if array is not None:
                np.save(new / f"{name}.npy", array)
        (new / _PLAN_FILE).write_text(json.dumps(fields))
        replace_folder(new, folder)


def load_plan(out: Path, key: str | None = None) -> ShardPlan | None:
    """Open the plan beside an output; None where there is none, or where it is not of this key.

    Raises:
        DamagedError: it is not as it was written.
        StorageError: it cannot be read.
    """
    folder = plan_path(out)
    if not (folder / _PLAN_FILE).is_file():
        return None
    with storage_errors(f"cannot read {folder}"):
        fields = read_json_file(folder / _PLAN_FILE)
    if key is not None and (not isinstance(fields, dict) or fields.get("key") != key):
        return None
    try:
        shards = tuple(Shard(**shard) for shard in fields["shards"])
        arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
        scan = TableScan(
            text_hashes=arrays["text_hashes"],
            labels=arrays.get("labels"),
            label_names=None if fields["label_names"] is None else tuple(fields["label_names"]),
            label_kind=None if fields["label_kind"] is None else LabelKind(fields["label_kind"]),
            **{name: fields[name] for name in ("distinct_texts", "conflicting_texts", "skipped")},
            row_numbers=arrays.get("row_numbers"),
            state=(),
            top=join_rows([]),
        )
        return ShardPlan(
            shards=shards,
            before=Before(**fields["before"]),
            scan=scan,
            copies=arrays["copies"],
            holds=arrays["holds"],
            identity=Identity.from_dict(fields["identity"], str(folder)),
            **{name: fields[name] for name in ("storage", "block_rows", "window_rows")},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{folder} is not a plan as headstart writes it; remove it: {error}") from None
