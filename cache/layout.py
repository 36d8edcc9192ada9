"""Where things stand in a cache file: creating one whole, and finding the way in one that exists.

FORMAT.md is the specification. A file is made complete in structure before its first row is known; from then
on, bytes change only inside its datasets, which this module maps to spans of the file. So no kill can harm the
structure, and rows are read and written without going through HDF5.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from .errors import DamagedError, FormatError, StorageError
from .hashing import HASH_BYTES
from .seal import FORMAT, SEAL_BYTES, VERSION, Extent, Seal, read_seal, write_seal

RECORD_BYTES = 16384
"""Room for the record of the run, which is only known when the last row is written."""
DOCUMENTS = ("identity", "plan", "label_names", "record")
STORAGE_DTYPES: dict[str, np.dtype[np.generic]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
MAX_DOCUMENT_BYTES = 1 << 26
GROUPS = ("features", "hashes", "checksums")
ROW_METADATA = {"text_hashes": "hashes/text", "token_hashes": "hashes/tokens", "lengths": "lengths", "truncated": "cut"}
"""What a block holds of each row besides its features, in the order of its checksum: its name, and its dataset's."""
_ALIGNMENT = 4096
_FEATURE_NAME = re.compile(r"[a-z0-9.]{1,64}")
_MOST_FEATURES = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape of a cache: what decides every dataset's name, shape and dtype."""

    rows: int
    block_rows: int
    widths: Mapping[str, int]
    """Columns of each feature, by the feature's name."""
    storage: str
    """``float32`` or ``float16``: how features are stored, whatever they were computed in."""
    labelled: bool
    document_bytes: Mapping[str, int]
    """Bytes set aside for each document."""

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.block_rows)

    def block_slice(self, block: int) -> slice:
        """The rows of one block."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.rows))

    def blocks_of(self, rows: slice) -> npt.NDArray[np.int64]:
        """The numbers of the blocks that these rows lie in."""
        return np.arange(rows.start // self.block_rows, -(-rows.stop // self.block_rows))

    def datasets(self) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
        """Shape and dtype of every dataset, by its path in the file."""
        hash_dtype: np.dtype[np.generic] = np.dtype(np.uint8)
        stored = STORAGE_DTYPES[self.storage]
        found: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]] = {}
        for name, width in sorted(self.widths.items()):
            found[f"features/{name}"] = ((self.rows, width), stored)
        for name in ("text", "tokens"):
            found[f"hashes/{name}"] = ((self.rows, HASH_BYTES), hash_dtype)
        found["lengths"] = ((self.rows,), np.dtype("<i4"))
        found["cut"] = ((self.rows,), np.dtype(np.uint8))
        found["checksums/blocks"] = ((self.blocks, HASH_BYTES), hash_dtype)
        if self.labelled:
            found["labels"] = ((self.rows,), np.dtype("<i8"))
            found["checksums/labels"] = ((self.blocks, HASH_BYTES), hash_dtype)
        for name in DOCUMENTS:
            if name in self.document_bytes:
                found[name] = ((), np.dtype(f"S{self.document_bytes[name]}"))
                found[f"checksums/{name}"] = ((HASH_BYTES,), hash_dtype)
        return found


@dataclasses.dataclass(frozen=True)
class Span:
    """One dataset as a run of bytes in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def extent(self) -> Extent:
        return self.offset, self.offset + self.nbytes

    def map(self, path: Path) -> npt.NDArray[np.generic]:
        """Map the bytes, read-only: nothing is read before it is looked at, and nothing is copied."""
        return np.memmap(path, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape)


def create_file(path: Path, layout: Layout) -> None:
    """Make a cache file of this layout, every byte of it set aside on the disk, with nothing in its datasets.

    Raises:
        StorageError: the folder cannot be written, or there is no room for the whole file.
    """
    path.unlink(missing_ok=True)  # what a killed run left takes room
    needed = SEAL_BYTES + sum(Span(0, *kind).nbytes + _ALIGNMENT for kind in layout.datasets().values())
    require_room(path, needed)
    with storage_errors(f"cannot create {path}, which takes {needed:,} bytes"):
        try:
            extents = _create_datasets(path, layout)
        except RuntimeError as error:  # of HDF5, when it closes a file that it could not write
            raise OSError(_reason(error)) from error
        write_seal(path, block_rows=layout.block_rows, extents=extents)
        with path.open("rb+") as raw:
            # Early allocation reserves addresses, not disk space: a full disk should say so now, not days later.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(raw.fileno(), 0, os.fstat(raw.fileno()).st_size)
            os.fsync(raw.fileno())


def _create_datasets(path: Path, layout: Layout) -> list[Extent]:
    """Make the file's HDF5 structure; where each dataset's bytes stand."""
    options = {"alignment_threshold": _ALIGNMENT, "alignment_interval": _ALIGNMENT, "userblock_size": SEAL_BYTES}
    with h5py.File(path, "w", **options) as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["block_rows"] = layout.block_rows
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.CONTIGUOUS)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        creation.set_obj_track_times(False)
        for group in GROUPS:
            file.create_group(group)
        extents = []
        for name, (shape, dtype) in layout.datasets().items():
            # The low-level call: h5py's create_dataset would put off allocating a scalar.
            kind = h5py.h5t.py_create(_hdf5_dtype(dtype), logical=True)
            space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
            dataset = h5py.h5d.create(file.id, name.encode(), kind, space, creation)
            extents.append(Span(dataset.get_offset(), shape, dtype).extent)
        return extents


def require_room(path: Path, needed: int) -> None:
    """Refuse a file of so many bytes where there is no room for it.

    Raises:
        StorageError: the file system has less free, or this process may not write so large a file.
    """
    with storage_errors(f"cannot create {path}"):
        free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise StorageError(f"cannot create {path}: it takes {needed:,} bytes, and {free:,} are free there")
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit != resource.RLIM_INFINITY and limit < needed:
            raise StorageError(
                f"cannot create {path}: it takes {needed:,} bytes, and a file of this process may have {limit:,} "
                "(ulimit -f)"
            )


def read_layout(path: Path) -> tuple[Layout, dict[str, Span]]:
    """Check a file's structure and find its datasets.

    The seal comes first: so HDF5 never sees a damaged file. Then only what FORMAT.md allows is accepted: plain
    contiguous datasets inside this very file, where the seal says, of the shapes that the rows and blocks give. So
    nothing in a file from a stranger can point elsewhere or load a filter. Attributes are not read.

    Raises:
        NotOursError: it is no headstart cache, or one of a newer version.
        DamagedError: it is cut short, or its structure contradicts itself.
        StorageError: it cannot be read.
    """
    seal = _sealed(path)
    with _opened(path) as file:
        layout, found = _layout_of(file, path, seal.block_rows)
        expected = layout.datasets()
        spans = {}
        for name, (shape, dtype) in expected.items():
            span = found.get(name)
            if span is None:
                raise DamagedError(f"{path}: it lacks the dataset {name!r}")
            if (span.shape, span.dtype) != (shape, dtype):
                raise DamagedError(
                    f"{path}: {name!r} is {span.dtype} of shape {span.shape}, expected {dtype} of shape {shape}"
                )
            if span.extent not in seal.extents:
                raise DamagedError(f"{path}: {name!r} is not where the seal has a dataset")
            spans[name] = span
    return layout, spans


def _layout_of(file: h5py.File, path: Path, block_rows: int) -> tuple[Layout, dict[str, Span]]:
    """Infer the layout from what is there; ``read_layout`` then holds every dataset against it."""
    found = {name: span for name in _known_names(file, path) if (span := _span(file, name, path)) is not None}
    features = {name.split("/", 1)[1]: span for name, span in found.items() if name.startswith("features/")}
    hashes = found.get("hashes/text")
    if not features or hashes is None or any(len(span.shape) != 2 for span in [hashes, *features.values()]):
        raise DamagedError(f"{path}: it lacks features or row hashes of two dimensions")
    dtypes = {span.dtype for span in features.values()}
    storage = [name for name, dtype in STORAGE_DTYPES.items() if {dtype} == dtypes]
    if not storage:
        raise DamagedError(f"{path}: its features are {sorted(map(str, dtypes))}")
    documents = {name: found[name].dtype.itemsize for name in DOCUMENTS if name in found}
    if not {"identity", "plan", "record"} <= set(documents) or max(documents.values()) > MAX_DOCUMENT_BYTES:
        raise DamagedError(f"{path}: it lacks a document, or one is larger than {MAX_DOCUMENT_BYTES:,} bytes")
    layout = Layout(
        rows=hashes.shape[0],
        block_rows=block_rows,
        widths={name: span.shape[1] for name, span in features.items()},
        storage=storage[0],
        labelled="labels" in found,
        document_bytes=documents,
    )
    if layout.rows < 1 or min(layout.widths.values()) < 1:
        raise DamagedError(f"{path}: it has no rows or no columns")
    return layout, found


def _known_names(file: h5py.File, path: Path) -> list[str]:
    """The names that this version knows, of those in the file; others are left alone, as FORMAT.md asks."""
    names = ["labels", *ROW_METADATA.values(), "checksums/blocks", "checksums/labels"]
    names += [*DOCUMENTS, *(f"checksums/{name}" for name in DOCUMENTS)]
    for group in GROUPS:
        link = file.get(group, getlink=True)
        if not isinstance(link, h5py.HardLink) or file.get(group, getclass=True) is not h5py.Group:
            raise DamagedError(f"{path}: it lacks the group {group!r}")
    features = file["features"]
    if len(features) > _MOST_FEATURES:
        raise DamagedError(f"{path}: it has {len(features):,} features, where {_MOST_FEATURES:,} are the most")
    if odd := [name for name in features if not _FEATURE_NAME.fullmatch(name)]:
        raise DamagedError(f"{path}: {odd[0][:80]!r} is no name for a feature")
    return names + [f"features/{name}" for name in features]


def _span(file: h5py.File, name: str, path: Path) -> Span | None:
    link = file.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink) or file.get(name, getclass=True) is not h5py.Dataset:
        raise DamagedError(f"{path}: {name!r} is a link or a group where a dataset belongs")
    dataset = file[name]
    creation = dataset.id.get_create_plist()
    plain = creation.get_layout() == h5py.h5d.CONTIGUOUS and creation.get_external_count() == 0
    offset = dataset.id.get_offset() if plain else None
    if offset is None:
        raise DamagedError(f"{path}: {name!r} is not stored as one run of bytes in this file")
    return Span(offset, dataset.shape, dataset.dtype)


def _sealed(path: Path) -> Seal:
    if path.is_dir():
        raise FormatError(f"{path} is a folder, not a headstart cache")
    if path.exists() and not path.is_file():  # to open a pipe is to wait for whoever writes into it
        raise FormatError(f"{path} is not a file, so it is not a headstart cache")
    try:
        with storage_errors(f"cannot read {path}"):
            return read_seal(path)
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise FormatError(f"{path} does not exist; make it with: headstart extract TABLE --out {path}") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        # A finished cache never changes, so a lock would only get in the way of file systems that have none.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise DamagedError(f"{path} cannot be opened as HDF5: {_reason(error)}") from None
    with file:
        try:
            yield file
        except (KeyError, RuntimeError, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
            # what h5py raises on a structure that is not as it should be
            raise DamagedError(f"{path}: its HDF5 structure is damaged: {_reason(error)}") from error


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn the operating system's refusals into one line that says what could not be done."""
    try:
        yield
    except OSError as error:
        # h5py puts a page of detail into strerror, so the system's own words for the number are taken.
        reason = os.strerror(error.errno) if error.errno else _reason(error)
        raise StorageError(f"{what}: {reason}") from error


def _hdf5_dtype(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    return h5py.string_dtype("utf-8", dtype.itemsize) if dtype.kind == "S" else dtype


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
