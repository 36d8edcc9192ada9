"""A joined cache: a file without rows of its own, which names the caches (the shards) that hold them, in order.

To other programs it is an HDF5 file of virtual datasets. headstart does not read these: HDF5 fills what it cannot open
with a fill value, and says nothing. It maps the shards themselves, and puts their arrays together as `JoinedRows`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

import h5py
import numpy as np
import numpy.typing as npt

from .documents import checked
from .errors import DamagedError, StorageError, storage_errors
from .hashing import HASH_BYTES, digest
from .label_kind import LabelKind
from .layout import COLUMNS, DOCUMENTS, GROUPS, ROW_METADATA, Layout, Span, find_span, opened_hdf5
from .seal import FORMAT, MOST_STRUCTURE, SEAL_BYTES, VERSION, write_seal

SHARDS = "shards"
"""The document that lists the shards."""
_OTHER_FILES = 64
"""Files that a process may open besides the shards of a joined cache."""


class ShardEntry(TypedDict):
    """What a joined cache says of one of its shards."""

    file: str
    """Its path from the joined cache's folder, with slashes."""
    rows: int
    id: str
    """What its plan says of it: so no other cache is taken for it."""


class JoinedRows:
    """Arrays with the same columns, one after the other, read as one array is read.

    Rows are copied from the arrays that hold them; rows of one array, asked for as a slice, are a view. numpy takes the
    whole as an array where it needs one, and copies it then.
    """

    def __init__(self, parts: Sequence[npt.NDArray[Any]]) -> None:
        """Join arrays, (rows of the part, ...) each, of one dtype."""
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *map(len, parts)])
        self._rows = int(self._starts[-1])
        self.dtype = parts[0].dtype
        self.shape = (self._rows, *parts[0].shape[1:])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self._rows

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.concatenate(self._parts, dtype=dtype)

    def __getitem__(self, rows: Any) -> Any:
        """Return one row; some consecutive rows; rows by their numbers; or those where a mask is True."""
        if isinstance(rows, slice) and rows.step in (None, 1):
            return self._span(*rows.indices(len(self))[:2])
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        if numbers.dtype == bool:
            numbers = np.flatnonzero(numbers)
        if numbers.size and not -len(self) <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"a row is outside the {len(self):,} rows")
        found = self._take(np.where(numbers < 0, numbers + len(self), numbers).reshape(-1))
        return found.reshape((*numbers.shape, *self.shape[1:]))[()]

    def _span(self, start: int, stop: int) -> npt.NDArray[Any]:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        for part, at in zip(self._parts[first:], self._starts[first:].tolist(), strict=False):
            if at >= stop:
                break
            parts.append(part[max(0, start - at) : stop - at])
        if not parts:
            return self._parts[0][:0]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        holders = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        order = np.argsort(holders, kind="stable")
        ordered = holders[order]
        bounds = np.flatnonzero(np.diff(ordered, prepend=-1, append=len(self._parts)))
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            places, holder = order[start:stop], int(ordered[start])
            found[places] = self._parts[holder][rows[places] - self._starts[holder]]
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class JoinedLayout(Layout):
    """The layout of a joined cache: its blocks are those of its shards."""

    shard_rows: tuple[int, ...]
    """Number of rows of each shard."""

    @functools.cached_property
    def _first_rows(self) -> npt.NDArray[np.int64]:
        return np.cumsum([0, *self.shard_rows])

    @functools.cached_property
    def _first_blocks(self) -> npt.NDArray[np.int64]:
        return np.cumsum([0, *(-(-rows // self.block_rows) for rows in self.shard_rows)])

    @property
    def blocks(self) -> int:
        return int(self._first_blocks[-1])

    def locate(self, block: int) -> tuple[int, int]:
        """Return the shard that holds a block, and the number of the block there."""
        shard = int(np.searchsorted(self._first_blocks, block, side="right")) - 1
        return shard, block - int(self._first_blocks[shard])

    def block_slice(self, block: int) -> slice:
        shard, own = self.locate(block)
        start = own * self.block_rows
        stop, first = min(start + self.block_rows, self.shard_rows[shard]), int(self._first_rows[shard])
        return slice(first + start, first + stop)


def read_document_spans(path: Path) -> dict[str, Span]:
    """Find the documents of a joined cache, and their checksums.

    Raises:
        DamagedError: one of them is missing, or is not stored in this file.
    """
    with opened_hdf5(path) as file:
        names = [each for name in (*DOCUMENTS, SHARDS) for each in (name, f"checksums/{name}")]
        spans = {name: span for name in names if (span := find_span(file, name, path)) is not None}
    needed = {"identity", "plan", "record", SHARDS}
    if missing := sorted({name for each in needed for name in (each, f"checksums/{each}")} - spans.keys()):
        raise DamagedError(f"{path}: it lacks the dataset {missing[0]!r}")
    return spans


def checked_entries(document: Any, path: Path, count: int) -> list[ShardEntry]:
    """Check the list of a joined cache's shards.

    Args:
        document: The parsed list.
        path: The joined cache.
        count: How many shards its seal says that it has.

    Raises:
        DamagedError: the list is not what FORMAT.md demands, or names a file outside the joined cache's folder.
    """
    if not isinstance(document, list) or len(document) != count:
        raise DamagedError(f"{path}: its list of shards is not a list of {count:,}")
    entries = [checked(fields, ShardEntry, f"{path}: its list of shards") for fields in document]
    folder = path.resolve().parent
    for entry in entries:
        named = PurePosixPath(entry["file"])
        if named.is_absolute() or ".." in named.parts or not (folder / named).resolve().is_relative_to(folder):
            raise DamagedError(
                f"{path}: it names the shard {entry['file'][:80]!r}, which lies outside the folder of the cache"
            )
    return entries


def require_descriptors(path: Path, files: int) -> None:
    """Let this process open so many files more: its limit is raised where it is too low.

    Raises:
        StorageError: the system does not allow it.
    """
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        needed = files + len(os.listdir("/dev/fd")) + _OTHER_FILES  # noqa: PTH208 - names of descriptors, not paths
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or needed <= soft:
            return
        if hard != resource.RLIM_INFINITY and needed > hard:
            raise StorageError(
                f"{path} has {files:,} shards, and this process may have {hard:,} files open at once: raise the limit "
                "(ulimit -Hn), or make one file of it with headstart join --copy"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def create_joined(
    path: Path,
    *,
    entries: Sequence[ShardEntry],
    layouts: Sequence[Layout],
    documents: Mapping[str, bytes],
) -> None:
    """Write a joined cache. Its bytes are durable at the end.

    Args:
        path: The file, in a `workspace`. It gets its final name in the folder from which the entries name the shards.
        entries: The shards, in the order of their rows.
        layouts: Their layouts, which differ in their numbers of rows alone.
        documents: The documents by name, encoded; with `SHARDS`, the encoded entries.

    Raises:
        StorageError: the file cannot be written, or the shards are too many for one.
    """
    first, kind = layouts[0], layouts[0].label_kind
    with storage_errors(f"cannot create {path}"):
        try:
            extents = _write_hdf5(path, entries, layouts, documents)
        except RuntimeError as error:  # HDF5 raises it when it closes a file that it could not write
            raise OSError(" ".join(str(error).split())) from error
        if (size := path.stat().st_size) > MOST_STRUCTURE:
            raise StorageError(
                f"{len(entries):,} shards make a joined cache of {size:,} bytes, and {MOST_STRUCTURE:,} is the most: "
                "make fewer"
            )
        write_seal(path, block_rows=first.block_rows, label_kind=kind, extents=extents, shards=len(entries))
        with path.open("rb") as raw:
            os.fsync(raw.fileno())


def _write_hdf5(
    path: Path, entries: Sequence[ShardEntry], layouts: Sequence[Layout], documents: Mapping[str, bytes]
) -> list[tuple[int, int]]:
    """Write the HDF5 file; return the bytes of each dataset in it."""
    first, rows = layouts[0], sum(layout.rows for layout in layouts)
    extents = []
    with h5py.File(path, "w-", locking=False, userblock_size=SEAL_BYTES) as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        file.attrs["block_rows"] = first.block_rows
        if first.label_kind is not None:
            file.attrs["label_kind"] = str(first.label_kind)
        for group in GROUPS:
            file.create_group(group)
        for name, (shape, dtype) in first.datasets().items():
            if name.startswith("features/") or name in (*ROW_METADATA.values(), *COLUMNS):
                _join_dataset(file, name, (rows, *shape[1:]), dtype, entries, layouts)
        for name, content in documents.items():
            kind = h5py.string_dtype("utf-8", len(content))
            for each, value in ((name, np.array(content, kind)), (f"checksums/{name}", _checksum(content))):
                dataset = file.create_dataset(each, data=value)
                extents.append((dataset.id.get_offset(), dataset.id.get_offset() + value.nbytes))
    return extents


def _checksum(content: bytes) -> npt.NDArray[np.uint8]:
    found = np.frombuffer(digest(content), np.uint8)
    assert len(found) == HASH_BYTES
    return found


def _join_dataset(
    file: h5py.File,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    entries: Sequence[ShardEntry],
    layouts: Sequence[Layout],
) -> None:
    """Add a virtual dataset over those of the shards; what another program cannot open reads as NaN, or as 0."""
    virtual = h5py.VirtualLayout(shape, dtype)
    start = 0
    for entry, layout in zip(entries, layouts, strict=True):
        stop = start + layout.rows
        virtual[start:stop] = h5py.VirtualSource(entry["file"], name, (layout.rows, *shape[1:]), dtype)
        start = stop
    file.create_virtual_dataset(name, virtual, fillvalue=np.nan if dtype.kind == "f" else 0)


def joined_layout(layouts: Sequence[Layout], documents: Mapping[str, int]) -> JoinedLayout:
    """The layout of caches with the same columns, joined; ``documents`` are the bytes of each document."""
    first = layouts[0]
    return JoinedLayout(
        rows=sum(layout.rows for layout in layouts),
        block_rows=first.block_rows,
        widths=first.widths,
        storage=first.storage,
        columns=first.columns,
        document_bytes=documents,
        label_kind=first.label_kind,
        classes=first.classes,
        shard_rows=tuple(layout.rows for layout in layouts),
    )


def kind_of(layout: Layout) -> tuple[Any, ...]:
    """What the layouts of all shards have in common."""
    kind: LabelKind | None = layout.label_kind
    return layout.block_rows, dict(layout.widths), layout.storage, layout.columns, kind, layout.classes
