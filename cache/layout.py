"""The layout of a cache file: which datasets it has, and where their bytes are. FORMAT.md is the specification.

The structure of a file is complete before its first row is written. From then on bytes change only inside datasets,
and this module returns the place of each dataset in the file. So a killed run cannot damage the structure, and rows are
read and written without HDF5.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from .errors import DamagedError, FormatError, StorageError, one_line, storage_errors
from .hashing import HASH_BYTES
from .label_kind import LabelKind
from .seal import Extent, Seal, read_seal

RECORD_BYTES = 16384
"""Bytes reserved for the record, which is written last."""
DOCUMENTS = ("identity", "plan", "label_names", "record")
STORAGE_DTYPES: dict[str, np.dtype[np.generic]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
MAX_DOCUMENT_BYTES = 1 << 26
GROUPS = ("features", "hashes", "checksums")
ROW_METADATA = {"text_hashes": "hashes/text", "token_hashes": "hashes/tokens", "lengths": "lengths", "truncated": "cut"}
"""The row metadata of a block, by name, with their datasets; in the order of the block's checksum."""
COLUMNS = ("labels", "rows")
"""Datasets of what rows have from the table, where they have it: labels, and their numbers in the table. Each has
checksums of its own, because the table may change one of them alone."""
_LABEL_DTYPES: dict[LabelKind, np.dtype[np.generic]] = {
    LabelKind.CLASS: np.dtype("<i8"),
    LabelKind.MULTI_LABEL: np.dtype(np.uint8),
    LabelKind.ORDINAL: np.dtype("<i8"),
    LabelKind.NUMBER: np.dtype("<f8"),
}
_FEATURE_NAME = re.compile(r"[a-z0-9.]{1,64}")
_MOST_FEATURES = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The values that decide the name, shape and dtype of every dataset."""

    rows: int
    block_rows: int
    widths: Mapping[str, int]
    """Number of columns of each feature, by name."""
    storage: str
    """Number format of the stored features: ``float32`` or ``float16``."""
    columns: tuple[str, ...]
    """Which of `COLUMNS` there are."""
    document_bytes: Mapping[str, int]
    """Number of bytes reserved for each document, by name."""
    label_kind: LabelKind | None
    """Kind of the labels; None where there are none."""
    classes: int = 0
    """Number of columns of multi-label labels; 0 for other kinds, whose labels are (rows,)."""

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.block_rows)

    def block_slice(self, block: int) -> slice:
        """Return the rows of a block."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.rows))

    def blocks_of(self, rows: slice) -> npt.NDArray[np.int64]:
        """Return the numbers of the blocks that hold these rows."""
        return np.arange(rows.start // self.block_rows, -(-rows.stop // self.block_rows))

    def datasets(self) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
        """Return the shape and dtype of every dataset, by its path in the file."""
        hash_dtype: np.dtype[np.generic] = np.dtype(np.uint8)
        stored = STORAGE_DTYPES[self.storage]
        datasets: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]] = {}
        for name, width in sorted(self.widths.items()):
            datasets[f"features/{name}"] = ((self.rows, width), stored)
        for name in ("text", "tokens"):
            datasets[f"hashes/{name}"] = ((self.rows, HASH_BYTES), hash_dtype)
        datasets["lengths"] = ((self.rows,), np.dtype("<i4"))
        datasets["cut"] = ((self.rows,), np.dtype(np.uint8))
        datasets["checksums/blocks"] = ((self.blocks, HASH_BYTES), hash_dtype)
        for name in self.columns:
            datasets[name] = ((self.rows,), np.dtype("<i8"))
            if name == "labels" and self.label_kind is not None:
                shape = (self.rows, self.classes) if self.label_kind is LabelKind.MULTI_LABEL else (self.rows,)
                datasets[name] = (shape, _LABEL_DTYPES[self.label_kind])
            datasets[f"checksums/{name}"] = ((self.blocks, HASH_BYTES), hash_dtype)
        for name in DOCUMENTS:
            if name in self.document_bytes:
                datasets[name] = ((), np.dtype(f"S{self.document_bytes[name]}"))
                datasets[f"checksums/{name}"] = ((HASH_BYTES,), hash_dtype)
        return datasets


@dataclasses.dataclass(frozen=True)
class Span:
    """The bytes of a dataset in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def extent(self) -> Extent:
        return self.offset, self.offset + self.nbytes


def map_spans(path: Path, spans: Mapping[str, Span]) -> dict[str, npt.NDArray[Any]]:
    """Map the bytes of datasets into memory, read-only. Nothing is copied, and a byte is read when it is used.

    The file is mapped once for all of them: a map keeps a file descriptor.

    Raises:
        OSError: the file cannot be read.
        ValueError: it ends before a dataset does.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(mapped) < max(span.extent[1] for span in spans.values()):
        raise ValueError(f"it has {len(mapped):,} bytes")
    return {name: np.ndarray(span.shape, span.dtype, mapped, span.offset) for name, span in spans.items()}


def read_layout(path: Path, seal: Seal | None = None) -> tuple[Layout, dict[str, Span]]:
    """Check the structure of a file, and find its datasets.

    The seal is checked first, so HDF5 never reads a damaged file. Then only the structure that FORMAT.md allows is
    accepted: contiguous datasets inside this file, at the places in the seal, with the shapes that follow from the rows
    and blocks. So a file from a stranger cannot point to another file, or load a filter. Attributes are not read.

    ``seal`` is that of the file, where it was read already.

    Raises:
        FormatError: the file is no headstart cache, holds what only a newer headstart reads, or is a joined cache.
        DamagedError: the file is cut short, or its structure contradicts itself.
        StorageError: the file cannot be read.
    """
    seal = seal or checked_seal(path)
    if seal.shards:
        raise FormatError(f"{path} is joined from shards; here belongs a cache of one file")
    with opened_hdf5(path) as file:
        layout, present = _layout_of(file, path, seal)
        expected = layout.datasets()
        spans = {}
        for name, (shape, dtype) in expected.items():
            span = present.get(name)
            if span is None:
                raise DamagedError(f"{path}: it lacks the dataset {name!r}")
            if (span.shape, span.dtype) != (shape, dtype):
                raise DamagedError(
                    f"{path}: {name!r} is {span.dtype} of shape {span.shape}, expected {dtype} of shape {shape}"
                )
            if span.extent not in seal.extents:
                raise DamagedError(f"{path}: {name!r} is at another place than the seal says")
            spans[name] = span
    return layout, spans


def _layout_of(file: h5py.File, path: Path, seal: Seal) -> tuple[Layout, dict[str, Span]]:
    """Infer the layout from the datasets that exist. `read_layout` compares every dataset with it."""
    spans = {name: span for name in _known_names(file, path) if (span := find_span(file, name, path)) is not None}
    features = {name.split("/", 1)[1]: span for name, span in spans.items() if name.startswith("features/")}
    hashes = spans.get("hashes/text")
    if not features or hashes is None or any(len(span.shape) != 2 for span in [hashes, *features.values()]):
        raise DamagedError(f"{path}: it lacks features or row hashes of two dimensions")
    dtypes = {span.dtype for span in features.values()}
    storage = [name for name, dtype in STORAGE_DTYPES.items() if {dtype} == dtypes]
    if not storage:
        raise DamagedError(f"{path}: its features are {sorted(map(str, dtypes))}")
    documents = {name: spans[name].dtype.itemsize for name in DOCUMENTS if name in spans}
    if not {"identity", "plan", "record"} <= set(documents) or max(documents.values()) > MAX_DOCUMENT_BYTES:
        raise DamagedError(f"{path}: it lacks a document, or one is larger than {MAX_DOCUMENT_BYTES:,} bytes")
    labels = spans.get("labels")
    layout = Layout(
        rows=hashes.shape[0],
        block_rows=seal.block_rows,
        widths={name: span.shape[1] for name, span in features.items()},
        storage=storage[0],
        columns=tuple(name for name in COLUMNS if name in spans),
        document_bytes=documents,
        label_kind=seal.label_kind if labels else None,
        classes=labels.shape[1] if labels and len(labels.shape) == 2 else 0,
    )
    if layout.rows < 1 or min(layout.widths.values()) < 1:
        raise DamagedError(f"{path}: it has no rows or no columns")
    return layout, spans


def _known_names(file: h5py.File, path: Path) -> list[str]:
    """Return the names of the datasets that this version knows. Others are ignored, as FORMAT.md demands."""
    names = [*ROW_METADATA.values(), "checksums/blocks"]
    names += [path for name in (*COLUMNS, *DOCUMENTS) for path in (name, f"checksums/{name}")]
    for group in GROUPS:
        link = file.get(group, getlink=True)
        if not isinstance(link, h5py.HardLink) or file.get(group, getclass=True) is not h5py.Group:
            raise DamagedError(f"{path}: it lacks the group {group!r}")
    features = file["features"]
    if len(features) > _MOST_FEATURES:
        raise DamagedError(f"{path}: it has {len(features):,} features, and {_MOST_FEATURES:,} is the maximum")
    if odd := [name for name in features if not _FEATURE_NAME.fullmatch(name)]:
        raise DamagedError(f"{path}: {odd[0][:80]!r} is not a valid name of a feature")
    return names + [f"features/{name}" for name in features]


def find_span(file: h5py.File, name: str, path: Path) -> Span | None:
    """Return where a dataset lies; None where there is none.

    Raises:
        DamagedError: it is not stored contiguously in this file.
    """
    link = file.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink) or file.get(name, getclass=True) is not h5py.Dataset:
        raise DamagedError(f"{path}: {name!r} is a link or a group, not a dataset")
    dataset = file[name]
    creation = dataset.id.get_create_plist()
    plain = creation.get_layout() == h5py.h5d.CONTIGUOUS and creation.get_external_count() == 0
    offset = dataset.id.get_offset() if plain else None
    if offset is None:
        raise DamagedError(f"{path}: {name!r} is not stored contiguously in this file")
    return Span(offset, dataset.shape, dataset.dtype)


def checked_seal(path: Path) -> Seal:
    """Read a cache's seal, and check what it covers.

    Raises:
        FormatError: the file is no headstart cache, or holds what only a newer headstart reads.
        DamagedError: the file contradicts its seal.
        StorageError: the file cannot be read.
    """
    if path.is_dir():
        raise FormatError(f"{path} is a folder, not a headstart cache")
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise FormatError(f"{path} is not a file, so it is not a headstart cache")
    try:
        with storage_errors(f"cannot read {path}"):
            return read_seal(path)
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise FormatError(f"{path} does not exist; make it with: headstart extract TABLE --out {path}") from None


@contextlib.contextmanager
def opened_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a sealed file as HDF5, for reading.

    Raises:
        DamagedError: HDF5 cannot read it, or what the block reads of it.
    """
    try:
        # A finished cache never changes, so it needs no lock. Some file systems have none.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise DamagedError(f"{path} cannot be opened as HDF5: {one_line(error)}") from None
    with file:
        try:
            yield file
        except (KeyError, RuntimeError, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
            # the errors that h5py raises for a wrong structure
            raise DamagedError(f"{path}: its HDF5 structure is damaged: {one_line(error)}") from error
