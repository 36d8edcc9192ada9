"""Reading a cache: its rows are mapped into memory without copying, and its checksums reveal damage.

The rows of a joined cache lie in other caches, its shards: `JoinedCache` asks these.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .documents import are_names, checked, parse_json
from .errors import DamagedError, FormatError, HeadstartError, UserError, storage_errors
from .hashing import HASH_BYTES, Hashes, digest
from .identity import Identity
from .joined import (
    SHARDS,
    JoinedLayout,
    JoinedRows,
    ShardEntry,
    checked_entries,
    joined_layout,
    kind_of,
    read_document_spans,
    require_descriptors,
)
from .label_kind import LabelKind
from .layout import COLUMNS, ROW_METADATA, Layout, Span, checked_seal, map_spans, read_layout
from .notebook import import_pandas, summary
from .record import Plan, Record, checked_record
from .seal import Seal

if TYPE_CHECKING:
    import pandas

_TESTING_THREADS = 4
"""Number of threads that test checksums; each holds a block in memory. It was measured on 2 cores only."""
_COLUMN_WORDS = dict(zip(("labels", "row numbers"), COLUMNS, strict=True))
Features = npt.NDArray[np.floating[Any]]
"""Features, (rows, width) float32 or float16."""
Labels = npt.NDArray[Any]
"""Labels, in the shape and dtype that `LabelKind` says."""
RowNumbers = npt.NDArray[np.int64]
"""Numbers of rows in their table, (rows,) int64, from 1 and ascending."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Cache:
    """An open cache. Its arrays are read-only maps of the file: a row is read when it is used.

    Attributes:
        path: The file.
        layout: Numbers of rows, blocks and columns, and the number format.
        identity: The identity of the features; see `Identity`.
        plan: How the rows are batched, and on what kind of device.
        record: What the run did. It is empty in an unfinished cache.
        label_names: Names of the classes, in the order of their numbers; None without classes.
        labels: In the shape and dtype that ``label_kind`` says; None without labels.
        row_numbers: (rows,) int64, each row's number in its table, from 1; None where they are 1, 2, 3, ...
        text_hashes: (rows, 16) uint8, the hash of each row's text.
        token_hashes: (rows, 16) uint8, the hash of each row's token sequence.
        lengths: (rows,) int32, the number of tokens of each row's sequence.
        truncated: (rows,) uint8, 1 if the text had more tokens than that.
        block_checksums: (blocks, 16) uint8.
        column_checksums: By the names of `layout.COLUMNS`: (blocks, 16) uint8. Columns of other origin have none.
    """

    path: Path
    layout: Layout
    identity: Identity
    plan: Plan
    record: Record
    label_names: tuple[str, ...] | None
    labels: Labels | None
    row_numbers: RowNumbers | None
    text_hashes: Hashes
    token_hashes: Hashes
    lengths: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.uint8]
    block_checksums: Hashes
    column_checksums: Mapping[str, Hashes]
    _features: Mapping[str, Features]
    _state: tuple[int, ...] | None
    """The file, its length and the time of its last change, when it was opened."""

    @property
    def rows(self) -> int:
        return self.layout.rows

    @property
    def files(self) -> tuple[Cache, ...]:
        """The caches of one file that hold the rows, in order: this one, or the shards of a joined cache."""
        return (self,)

    @property
    def bytes(self) -> int:
        """Number of bytes of the file, and of the shards of a joined cache."""
        return self.path.stat().st_size

    @property
    def label_kind(self) -> LabelKind | None:
        """Kind of the labels; None without labels."""
        return self.layout.label_kind

    def __repr__(self) -> str:
        features = ", ".join(f"{name} ({width})" for name, width in self.layout.widths.items())
        return f"Cache({str(self.path)!r}, {self.rows:,} rows, {features})"

    def _repr_html_(self) -> str:
        names = ", ".join(self.label_names or ())
        facts = {
            "encoder": str(self.record["encoder"]["name"]) if self.record else "unfinished",
            "rows": f"{self.rows:,}",
            "features": ", ".join(f"{name} ({width:,})" for name, width in self.layout.widths.items()),
            "stored as": self.layout.storage,
            "labels": f"{self.label_kind}: {names}" if names else self.label_kind or "none",
        }
        return summary(str(self.path), facts)

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers that the extraction recorded: of rows, texts and tokens, of what was encoded, and seconds."""
        return {name: value for name, value in self.record.items() if isinstance(value, int | float)}

    def to_frame(self, *features: str) -> pandas.DataFrame:
        """Return a table with a line for each row. The checksums of all rows are verified first.

        Columns: ``row``, its number in its table, from 1; ``label``, where there are labels: a name, a list of names,
        or a number; ``text_hash`` and ``token_hash``, 32 hexadecimal digits; ``tokens``; ``truncated``. Then for each
        feature that is asked for its numbers: ``NAME_0``, ``NAME_1`` and so on.

        Raises:
            UserError: the cache does not hold such a feature.
            DamagedError: as for `check`.
            SettingsError: pandas is not installed.
        """
        frame_of, arrays = import_pandas().DataFrame, [(name, self.features(name)) for name in features]
        self.check()
        columns: dict[str, Any] = {
            "row": np.arange(1, self.rows + 1) if self.row_numbers is None else np.array(self.row_numbers)
        }
        if self.labels is not None:
            names = np.array(self.label_names or (), object)
            if self.label_kind is LabelKind.MULTI_LABEL:
                columns["label"] = [names[row == 1].tolist() for row in self.labels]
            else:
                columns["label"] = names[self.labels] if self.label_names else np.array(self.labels)
        for name in ("text_hash", "token_hash"):
            digits = getattr(self, f"{name}es").tobytes().hex()
            columns[name] = [digits[start : start + 2 * HASH_BYTES] for start in range(0, len(digits), 2 * HASH_BYTES)]
        columns |= {"tokens": np.array(self.lengths), "truncated": self.truncated == 1}
        frame: pandas.DataFrame = frame_of(columns)
        for name, array in arrays:
            numbers = frame_of(np.array(array), columns=[f"{name}_{number}" for number in range(array.shape[1])])
            frame = frame.join(numbers)
        return frame

    def with_labels(self, labels: Labels, names: tuple[str, ...] | None, kind: LabelKind) -> Cache:
        """Return the cache with other labels, which have no checksums."""
        layout = dataclasses.replace(self.layout, label_kind=kind, classes=labels.shape[1] if labels.ndim == 2 else 0)
        checksums = {name: sums for name, sums in self.column_checksums.items() if name != "labels"}
        return dataclasses.replace(self, layout=layout, labels=labels, label_names=names, column_checksums=checksums)

    def features(self, name: str = "auto") -> Features:
        """Return one feature of all rows: (rows, width) float32 or float16, mapped and read-only.

        Raises:
            UserError: as for `feature_name`.
        """
        return self._features[self.feature_name(name)]

    def feature_name(self, name: str) -> str:
        """Return the name of a feature that the cache holds. ``auto`` is the only one, or ``model`` where it is there.

        Raises:
            UserError: the cache does not hold this feature, or several that auto does not choose from.
        """
        held = sorted(self._features)
        if name == "auto" and (known := held if len(held) == 1 else [one for one in held if one == "model"]):
            return known[0]
        if name not in held:
            lacks = "several features, none of them the encoder's own" if name == "auto" else f"no feature {name!r}"
            raise UserError(f"{self.path} holds {lacks}; it holds: {', '.join(held)}; choose with `feature`")
        return name

    def require_unchanged(self) -> None:
        """Refuse what was made of the rows if the file was written over since it was opened. To be called at the end.

        A file that was replaced as a whole is no matter: the old one was read to the end.

        Raises:
            DamagedError: the file has another length, or was changed.
        """
        now = _state(self.path)
        if now != self._state and now is not None and self._state is not None and now[:2] == self._state[:2]:
            raise DamagedError(
                f"{self.path} was written over while it was read, so what was made of it is thrown away; run this again"
            )

    def block_holds(self, block: int) -> bool:
        """Return whether the checksum of a block matches its features and row metadata, and the features are finite."""
        return self.block_damage(block) is None

    def block_damage(self, block: int) -> str | None:
        """Return what is wrong with a block's features and row metadata; None if it holds.

        A checksum can match although a program wrote a value that no encoder gives, so the values are checked, too.
        """
        rows, features = self.layout.block_slice(block), sorted(self._features.items())
        arrays = [*(array for _, array in features), *(getattr(self, name) for name in ROW_METADATA)]
        parts = _read_rows(self.path, arrays, rows)
        if parts is None or block_checksum(rows, parts) != self.block_checksums[block].tobytes():
            return "features, hashes, lengths or their checksum are damaged, or cannot be read"
        for (name, array), part in zip(features, parts, strict=False):
            row = _first_not_finite(part.view(array.dtype).reshape(-1, array.shape[1]))
            if row is not None:
                return f"the feature {name!r} of {self.place(rows.start + row)} is not finite"
        return None

    def row_metadata(self, rows: slice) -> dict[str, npt.NDArray[Any]]:
        """Return the hashes, lengths and truncation flags of some rows, by name."""
        return {name: getattr(self, name)[rows] for name in ROW_METADATA}

    def whole_blocks(self, on_block: Callable[[int], None] = lambda block: None) -> npt.NDArray[np.bool_]:
        """Test all blocks, but not their labels. Every row is read once.

        Args:
            on_block: Called with the number of each block that was read.

        Returns:
            (blocks,) bool, True if the checksum matches and the features are finite.
        """
        return self._each_block(self.block_holds, on_block)

    def damaged_blocks(self, on_block: Callable[[int], None] = lambda block: None) -> list[int]:
        """List the blocks that do not hold, by their features or by their columns. Every row is read once.

        Args:
            on_block: Called with the number of each block that was read.
        """
        whole = self._each_block(lambda b: self.block_holds(b) and self.block_column_damage(b) is None, on_block)
        damaged: list[int] = np.flatnonzero(~whole).tolist()
        return damaged

    def check(self, on_block: Callable[[int], None] = lambda block: None) -> None:
        """Read every row once, and refuse a damaged cache.

        Args:
            on_block: Called with the number of each block that was read.

        Raises:
            DamagedError: a checksum does not match, a feature is not finite, or a label is out of range.
        """
        if damaged := self.damaged_blocks(on_block):
            rows = self.layout.block_slice(damaged[0])
            what = self.block_damage(damaged[0]) or self.block_column_damage(damaged[0])
            raise DamagedError(
                f"{self.path}: {len(damaged)} of {self.layout.blocks} blocks are damaged, the first at rows "
                f"{rows.start + 1:,} to {rows.stop:,} ({what}); extract again with `overwrite=True`"
            )
        self.check_labels()

    def check_labels(self) -> None:
        """Refuse damaged labels.

        Raises:
            DamagedError: a checksum of the labels does not match, or a label is out of range.
        """
        whole = all(self.block_column_holds(block, "labels") for block in range(self.layout.blocks))
        if not whole or (problem := self.label_problem(slice(None))):
            raise DamagedError(f"{self.path}: its labels are damaged" + ("" if not whole else f": {problem}"))

    def label_problem(self, rows: slice) -> str | None:
        """Return what is wrong with the values of some rows' labels; None if they can be labels, or there are none."""
        if self.labels is None:
            return None
        labels = self.labels[rows]
        if self.label_names is None:
            return None if np.isfinite(labels).all() else "a label is not a finite number"
        most = 1 if self.label_kind is LabelKind.MULTI_LABEL else len(self.label_names) - 1
        return None if 0 <= labels.min() <= labels.max() <= most else f"a label is outside 0 to {most}"

    def label_counts(self) -> dict[str, int] | None:
        """Return the number of rows that have each class, by name; None without classes.

        Raises:
            DamagedError: as for `check_labels`.
        """
        self.check_labels()
        if self.labels is None or self.label_names is None:
            return None
        if self.label_kind is LabelKind.MULTI_LABEL:
            counts = self.labels.sum(axis=0, dtype=np.int64)
        else:
            counts = np.bincount(self.labels, minlength=len(self.label_names))
        return {name: int(count) for name, count in zip(self.label_names, counts, strict=True)}

    def label_range(self) -> list[float] | None:
        """Return the smallest, the mean and the largest of labels that are numbers; None of others.

        Raises:
            DamagedError: as for `check_labels`.
        """
        self.check_labels()
        if self.labels is None or self.label_kind is not LabelKind.NUMBER:
            return None
        return [float(self.labels.min()), float(self.labels.mean()), float(self.labels.max())]

    def place(self, row: int) -> str:
        """Return what a message calls a row: its number from 1, and its number in the table, where that differs."""
        if self.row_numbers is None or self.row_numbers[row] == row + 1:
            return f"row {row + 1:,}"
        return f"row {row + 1:,} (row {self.row_numbers[row]:,} of the table)"

    def block_column_holds(self, block: int, name: str) -> bool:
        """Return whether the checksum of a block's part of a column matches, one of `layout.COLUMNS`; True where there
        is no such column."""
        column = self.labels if name == "labels" else self.row_numbers
        if column is None or name not in self.column_checksums:
            return True
        rows = self.layout.block_slice(block)
        parts = _read_rows(self.path, [column], rows)
        return parts is not None and block_checksum(rows, parts) == self.column_checksums[name][block].tobytes()

    def block_column_damage(self, block: int) -> str | None:
        """Return what is wrong with a block's labels and row numbers; None if they hold."""
        damaged = [what for what, name in _COLUMN_WORDS.items() if not self.block_column_holds(block, name)]
        return f"{' and '.join(damaged)} or their checksum are damaged, or cannot be read" if damaged else None

    def _each_block(self, test: Callable[[int], bool], on_block: Callable[[int], None]) -> npt.NDArray[np.bool_]:
        """Test each block: (blocks,) bool. Hashing releases the GIL, so several threads share the work."""
        results = np.zeros(self.layout.blocks, bool)
        with ThreadPoolExecutor(_TESTING_THREADS, "headstart-check") as pool:
            try:
                for block, holds in enumerate(pool.map(test, range(self.layout.blocks))):
                    results[block] = holds
                    on_block(block)
            finally:
                pool.shutdown(cancel_futures=True)
        return results


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class JoinedCache(Cache):
    """An open joined cache: its arrays are those of its shards, one after the other.

    A row is read from its shard when it is used. Labels and row numbers are in memory: they take 16 bytes a row.
    """

    layout: JoinedLayout
    shards: tuple[Cache, ...]

    @property
    def files(self) -> tuple[Cache, ...]:
        return self.shards

    @property
    def bytes(self) -> int:
        return super().bytes + sum(shard.bytes for shard in self.shards)

    def require_unchanged(self) -> None:
        super().require_unchanged()
        for shard in self.shards:
            shard.require_unchanged()

    def block_damage(self, block: int) -> str | None:
        shard, own = self.layout.locate(block)
        return self.shards[shard].block_damage(own)

    def block_column_holds(self, block: int, name: str) -> bool:
        shard, own = self.layout.locate(block)
        return name not in self.column_checksums or self.shards[shard].block_column_holds(own, name)


def open_cache(path: str | os.PathLike[str]) -> Cache:
    """Open a finished cache. Its structure, identity and documents are checked; `Cache.check` checks its rows.

    Raises:
        FormatError: there is no such file, or it is no cache, is unfinished, or has a newer version.
        DamagedError: the file is cut short, its structure is wrong, or the checksum of a document does not match.
        StorageError: the file cannot be read.
    """
    return _open_finished(Path(path))


def open_shard(path: Path) -> Cache:
    """Open a finished cache that is no joined one.

    Raises:
        As `open_cache`.
    """
    return _open_finished(path, may_join=False)


def _open_finished(path: Path, *, may_join: bool = True) -> Cache:
    cache = _open(path, finished=True, may_join=may_join)
    if not cache.record:
        raise FormatError(f"{path} is not finished; run the same headstart extract again to finish it")
    return cache


def open_any(path: Path) -> Cache:
    """Open a cache that may be unfinished. An unfinished cache has an empty record, and blocks without a checksum.

    A run writes the record last. If its checksum does not match, the run was killed before it was done.
    """
    return _open(path, finished=False)


def _open(path: Path, *, finished: bool, may_join: bool = False) -> Cache:
    """Open a cache. Another run may replace the file at the same time: all that is read is from one file."""
    while True:
        before = _file_at(path)
        try:
            cache = _read(path, finished=finished, may_join=may_join, state=_state(path))
        except (HeadstartError, ValueError) as error:
            if before is not None and _file_at(path) != before:
                continue
            if isinstance(error, ValueError):  # from a map past the end of the file
                raise DamagedError(f"{path} was cut short while it was opened: {error}") from None
            raise
        if _file_at(path) == before:
            return cache


def _file_at(path: Path) -> tuple[int, ...] | None:
    """Return which file has this name; None if there is none."""
    state = _state(path)
    return None if state is None else state[:2]


def _state(path: Path) -> tuple[int, ...] | None:
    """Return which file has this name, its length, and the time of its last change; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path, *, finished: bool, may_join: bool, state: tuple[int, ...] | None) -> Cache:
    seal = checked_seal(path)
    if seal.shards and may_join:
        return _read_joined(path, seal, state=state)
    layout, spans = read_layout(path, seal)
    with storage_errors(f"cannot read {path}"):
        documents = {name: _read_document(path, name, spans, finished=finished) for name in layout.document_bytes}
        arrays = map_spans(path, {name: span for name, span in spans.items() if span.shape})
    fields: dict[str, Any] = {
        "labels": arrays.get("labels"),
        "row_numbers": arrays.get("rows"),
        **{name: arrays[dataset] for name, dataset in ROW_METADATA.items()},
        "block_checksums": arrays["checksums/blocks"],
        "column_checksums": {name: arrays[f"checksums/{name}"] for name in layout.columns},
        "_features": {name: arrays[f"features/{name}"] for name in layout.widths},
        "_state": state,
    }
    return Cache(path=path, layout=layout, **_checked_documents(path, layout, documents), **fields)


def _read_joined(path: Path, seal: Seal, *, state: tuple[int, ...] | None) -> Cache:
    """Open a joined cache, and all its shards.

    Raises:
        DamagedError: a shard is missing, damaged or another cache, or the shards do not fit together.
        StorageError: this process may not open so many files.
    """
    spans = read_document_spans(path)
    with storage_errors(f"cannot read {path}"):
        documents = {
            name: _read_document(path, name, spans, finished=True)
            for name in spans
            if not name.startswith("checksums/")
        }
    entries = checked_entries(documents.pop(SHARDS), path, seal.shards)
    require_descriptors(path, len(entries))
    shards = []
    for entry in entries:
        file = path.parent / entry["file"]
        if not file.exists():
            raise DamagedError(f"{path} lacks the shard {file}: run the same headstart extract again to make it")
        try:
            shard = open_shard(file)
        except (FormatError, DamagedError) as error:
            raise DamagedError(
                f"{path} has a shard that cannot be read; run the same headstart extract again to make it: {error}"
            ) from None
        if (shard.rows, shard_fields(shard).get("id")) != (entry["rows"], entry["id"]):
            raise DamagedError(
                f"{path}: {shard.path} is not the shard that was joined: it is of other rows or labels, or of another "
                "place among them"
            )
        shards.append(shard)
    layouts, first = [shard.layout for shard in shards], shards[0]
    layout = joined_layout(layouts, {name: spans[name].nbytes for name in documents})
    checked_fields = _checked_documents(path, layout, documents)
    for shard in shards:
        alike = shard.identity == checked_fields["identity"] and shard.label_names == checked_fields["label_names"]
        if not alike or kind_of(shard.layout) != kind_of(first.layout):
            raise DamagedError(f"{path}: {shard.path} has another identity, other features or other labels")

    def joined(*arrays: npt.NDArray[Any] | None) -> Any:
        return None if arrays[0] is None else JoinedRows([array for array in arrays if array is not None])

    labels, numbers = (joined(*columns) for columns in zip(*((s.labels, s.row_numbers) for s in shards), strict=True))
    ordinary = numbers is None or numbers[-1] == layout.rows  # they ascend, so they are 1, 2, 3, ...
    fields: dict[str, Any] = {
        "labels": None if labels is None else np.asarray(labels),
        "row_numbers": None if ordinary else np.asarray(numbers),
        **{name: joined(*(getattr(shard, name) for shard in shards)) for name in ROW_METADATA},
        "block_checksums": np.concatenate([shard.block_checksums for shard in shards]),
        "column_checksums": {
            name: np.concatenate([shard.column_checksums[name] for shard in shards]) for name in layout.columns
        },
        "_features": {name: joined(*(shard.features(name) for shard in shards)) for name in layout.widths},
        "_state": state,
    }
    return JoinedCache(path=path, layout=layout, shards=tuple(shards), **checked_fields, **fields)


def shard_entries(path: Path) -> list[ShardEntry]:
    """Return what a joined cache says of its shards, which are not opened; nothing of a cache of one file.

    Raises:
        FormatError, DamagedError, StorageError: as for `open_cache`.
    """
    seal = checked_seal(path)
    if not seal.shards:
        return []
    with storage_errors(f"cannot read {path}"):
        document = _read_document(path, SHARDS, read_document_spans(path), finished=True)
    return checked_entries(document, path, seal.shards)


def shard_fields(cache: Cache) -> Mapping[str, Any]:
    """Return what a cache's plan says of the shard that it is; nothing if it is no shard."""
    fields = cache.plan.get("shard")
    return fields if isinstance(fields, dict) else {}


def _checked_documents(path: Path, layout: Layout, documents: Mapping[str, Any]) -> dict[str, Any]:
    """Check the documents of a cache; return what `Cache` keeps of them."""
    names = documents.get("label_names")
    named = layout.label_kind not in (None, LabelKind.NUMBER)
    if named != (names is not None) or not (names is None or are_names(names)):
        raise DamagedError(f"{path}: its label names are not a list of distinct names, or it has labels without names")
    if layout.label_kind is LabelKind.MULTI_LABEL and (count := len(names or ())) != layout.classes:
        raise DamagedError(f"{path}: it has {count:,} label names, and labels of {layout.classes:,} columns")
    plan = checked(documents["plan"], Plan, f"{path}: its plan")
    if documents["record"] != {}:
        checked_record(documents["record"], layout.rows, f"{path}: its record")
    identity = Identity.from_dict(documents["identity"], str(path))
    if set(identity.features) != set(layout.widths):
        raise DamagedError(
            f"{path}: it holds the features {sorted(layout.widths)}, its identity says {list(identity.features)}"
        )
    return {
        "identity": identity,
        "plan": plan,
        "record": documents["record"],
        "label_names": None if names is None else tuple(names),
    }


def _read_rows(path: Path, arrays: Sequence[npt.NDArray[Any]], rows: slice) -> list[npt.NDArray[Any]] | None:
    """Return some rows of each array of a cache; None if they cannot be read: they are as damaged as if they had
    changed."""
    try:
        return [_rows_of(path, array, rows) for array in arrays]
    except OSError:
        return None


def _first_not_finite(features: Features) -> int | None:
    """Return the first row that holds a value that is not finite; None if there is none.

    A sum is not finite if a value is not, and takes one quick pass. It may also overflow; then each value is looked at.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(features.sum(dtype=np.float32)):
            return None
    finite = np.isfinite(features).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def _rows_of(path: Path, array: npt.NDArray[Any], rows: slice) -> npt.NDArray[Any]:
    """Return rows of an array that may be a map of a file, read from that file. A failing disk then raises an error;
    reading the map would end the process."""
    if not isinstance(array.base, mmap.mmap):
        return array[rows]
    row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
    offset = array.ctypes.data - np.frombuffer(array.base, np.uint8).ctypes.data
    with path.open("rb") as file:
        file.seek(offset + rows.start * row_bytes)
        return np.frombuffer(file.read((rows.stop - rows.start) * row_bytes), np.uint8)


def block_checksum(rows: slice, parts: list[npt.NDArray[Any]]) -> bytes:
    """Return the checksum of a block: of its rows' numbers, so that no block passes for another, and of its arrays."""
    return digest(np.array([rows.start, rows.stop], "<u8"), *parts)


def _read_document(path: Path, name: str, spans: Mapping[str, Span], *, finished: bool) -> Any:
    """Read a JSON document. A record that was not written completely is an empty object."""
    content = _read_bytes(path, spans[name])
    checksum = _read_bytes(path, spans[f"checksums/{name}"])
    if name == "record" and not any(checksum) and not any(content):
        return {}
    if digest(content) != checksum:
        if name == "record" and not finished:
            return {}
        raise DamagedError(
            f"{path}: its {name} is damaged (its checksum does not match); extract again with `overwrite=True`"
        )
    return parse_json(content.rstrip(b"\0"), f"{path}: its {name}")


def _read_bytes(path: Path, span: Span) -> bytes:
    with path.open("rb") as file:
        file.seek(span.offset)
        return file.read(span.nbytes)
