"""Writing a cache: blocks are written in place and count when their checksums match; the last step is a rename."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .create import create_file
from .errors import HeadstartError, StorageError, storage_errors
from .hashing import Hashes, digest
from .identity import Identity
from .label_kind import LabelKind
from .layout import COLUMNS, RECORD_BYTES, ROW_METADATA, Layout, read_layout
from .reader import Cache, Labels, RowNumbers, block_checksum
from .seal import begins_as_cache
from .siblings import followed
from .workspace import foreign, open_own, replace_file


def encode_document(value: Any) -> bytes:
    """Return a document as it is stored: JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


class CacheWriter:
    """Writes the blocks of an unfinished cache, and finishes it.

    The HDF5 structure of the file is complete already, so a block is written at a known place without HDF5. If the
    process is killed, the structure stays whole, and so do the blocks that were written. Writes need no order: if the
    checksum of a block reaches the disk before its rows, it does not match, and the block is written again.
    """

    def __init__(self, path: Path) -> None:
        """Open an unfinished file."""
        self.path = path
        self.layout, self._spans = read_layout(path)
        self._lock = threading.Lock()  # two threads may write
        with storage_errors(f"cannot write {path}"):
            self._file = open(path, "rb+", buffering=0, opener=open_own)  # noqa: SIM115

    def write_block(
        self, block: int, *, features: Mapping[str, npt.NDArray[Any]], **row_metadata: npt.NDArray[Any]
    ) -> None:
        """Write one block's rows and their checksum.

        Args:
            block: The block's number.
            features: Features by name, (rows of the block, width). They are cast to the stored dtype.
            row_metadata: ``text_hashes`` and ``token_hashes`` (rows of the block, 16) uint8; ``lengths`` (rows of the
                block,) int32; ``truncated`` (rows of the block,) uint8.
        """
        rows = self.layout.block_slice(block)
        stored = {f"features/{n}": features[n].astype(self._spans[f"features/{n}"].dtype) for n in sorted(features)}
        stored |= {dataset: row_metadata[name] for name, dataset in ROW_METADATA.items()}
        for name, array in stored.items():
            self._write(name, rows.start, array)
        checksum = block_checksum(rows, list(stored.values()))
        self._write("checksums/blocks", block, np.frombuffer(checksum, np.uint8))

    def write_row_metadata(self, row: int, **row_metadata: npt.NDArray[Any]) -> None:
        """Write metadata, as for `write_block`, for the rows from ``row`` on. It counts when the block is written."""
        for name, array in row_metadata.items():
            self._write(ROW_METADATA[name], row, array)

    def finish(self, record: Mapping[str, Any], path: Path) -> None:
        """Write the record, make all bytes durable, and rename the file to ``path``.

        Raises:
            OutputExistsError: a file that is no cache has appeared at ``path``.
            StorageError: the file cannot be written, or another run replaced it.
        """
        self._write_document("record", record)
        self.sync()
        with storage_errors(f"cannot complete {path}"):
            if not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                raise StorageError(f"another run replaced {self.path}; {path} is unchanged: run this again")
            self._file.close()
            if os.path.lexists(followed(path)) and not begins_as_cache(followed(path)):
                raise foreign(path)
        replace_file(self.path, path)

    def sync(self) -> None:
        """Make all written bytes durable."""
        with storage_errors(f"cannot write {self.path}"):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_document(self, name: str, value: Any) -> None:
        room = self._spans[name].dtype.itemsize
        content = encode_document(value)
        if len(content) > room:
            raise HeadstartError(f"{self.path}: the {name} has {len(content)} bytes, and {room} are reserved for it")
        content = content.ljust(room, b"\0")
        self._write(name, 0, np.frombuffer(content, np.uint8))
        self._write(f"checksums/{name}", 0, np.frombuffer(digest(content), np.uint8))

    def _write(self, name: str, row: int, array: npt.NDArray[Any]) -> None:
        span = self._spans[name]
        row_bytes = span.nbytes // span.shape[0] if span.shape else 0
        data = np.ascontiguousarray(array).view(np.uint8).data.cast("B")
        offset = span.offset + row * row_bytes
        with storage_errors(f"cannot write {self.path}"), self._lock:
            self._file.seek(offset)
            while data:  # the system may write a part only
                data = data[self._file.write(data) :]


def create_cache(
    path: Path,
    *,
    block_rows: int,
    widths: Mapping[str, int],
    storage: str,
    identity: Identity,
    plan: Mapping[str, Any],
    text_hashes: Hashes,
    labels: Labels | None,
    label_names: tuple[str, ...] | None,
    label_kind: LabelKind | None = LabelKind.CLASS,
    row_numbers: RowNumbers | None = None,
) -> None:
    """Make an unfinished cache, with everything that is known before the first row is encoded, and room for the rest.

    Its bytes are durable at the end.

    Args:
        path: The unfinished file, in a `workspace`: a run that is killed meanwhile leaves a part of it.
        block_rows: Number of rows that share a checksum.
        widths: Number of columns of each feature, by name.
        storage: ``float32`` or ``float16``.
        identity: The identity of the features.
        plan: How rows are batched, and on what kind of device. A run that resumes compares it.
        text_hashes: (rows, 16) uint8.
        labels: In the shape and dtype that ``label_kind`` says, or None.
        label_names: Names of the classes, in the order of their numbers, or None.
        label_kind: Kind of the labels; without labels, it does not matter.
        row_numbers: (rows,) int64, of each row in its table, from 1; None where they are 1, 2, 3, ...

    Raises:
        StorageError: the folder cannot be written, or has no room for the whole file.
    """
    documents: dict[str, Any] = {"identity": json.loads(identity.to_json()), "plan": plan}
    if label_names is not None:
        documents["label_names"] = list(label_names)
    columns = {n: values for n, values in zip(COLUMNS, (labels, row_numbers), strict=True) if values is not None}
    layout = Layout(
        rows=len(text_hashes),
        block_rows=block_rows,
        widths=widths,
        storage=storage,
        columns=tuple(columns),
        document_bytes={**{n: len(encode_document(v)) for n, v in documents.items()}, "record": RECORD_BYTES},
        label_kind=None if labels is None else label_kind,
        classes=labels.shape[1] if labels is not None and labels.ndim == 2 else 0,
    )
    columns = {name: values.astype(layout.datasets()[name][1]) for name, values in columns.items()}
    create_file(path, layout)
    with CacheWriter(path) as writer:
        for name, value in documents.items():
            writer._write_document(name, value)
        writer._write("hashes/text", 0, text_hashes)
        for name, values in columns.items():
            writer._write(name, 0, values)
            for block in range(layout.blocks):
                rows = layout.block_slice(block)
                checksum = block_checksum(rows, [values[rows]])
                writer._write(f"checksums/{name}", block, np.frombuffer(checksum, np.uint8))
        writer.sync()


def copy_with_labels(
    source: Cache,
    path: Path,
    *,
    labels: Labels | None,
    label_names: tuple[str, ...] | None,
    label_kind: LabelKind | None = LabelKind.CLASS,
    row_numbers: RowNumbers | None = None,
    plan: Mapping[str, Any] | None = None,
) -> list[int]:
    """Copy the rows of a cache of one file to a new unfinished file with other labels and row numbers, durably.

    ``plan`` is that of the copy; None for the same.

    Returns:
        The blocks that were not copied, because their checksums do not match in ``source``.
    """
    layout = source.layout
    create_cache(
        path,
        block_rows=layout.block_rows,
        widths=layout.widths,
        storage=layout.storage,
        identity=source.identity,
        plan=source.plan if plan is None else plan,
        text_hashes=source.text_hashes,
        labels=labels,
        label_names=label_names,
        label_kind=label_kind,
        row_numbers=row_numbers,
    )
    left_out = []
    with CacheWriter(path) as writer:
        for block in range(layout.blocks):
            if not source.block_holds(block):
                left_out.append(block)
                continue
            rows = layout.block_slice(block)
            writer.write_block(
                block,
                features={name: source.features(name)[rows] for name in layout.widths},
                **source.row_metadata(rows),
            )
        writer.sync()
    source.require_unchanged()
    return left_out


def copy_rows(
    source: Cache, path: Path, *, plan: Mapping[str, Any], on_block: Callable[[int], None] = lambda block: None
) -> None:
    """Copy the rows of a whole cache, which may be a joined one, to a new unfinished file, durably.

    Args:
        source: The cache; its checksums were verified.
        path: The file to make.
        plan: The plan of the copy.
        on_block: Called with the number of each block that was written.
    """
    layout = source.layout
    create_cache(
        path,
        block_rows=layout.block_rows,
        widths=layout.widths,
        storage=layout.storage,
        identity=source.identity,
        plan=plan,
        text_hashes=source.text_hashes,
        labels=source.labels,
        label_names=source.label_names,
        label_kind=source.label_kind,
        row_numbers=source.row_numbers,
    )
    with CacheWriter(path) as writer:
        for block in range(writer.layout.blocks):
            rows = writer.layout.block_slice(block)
            features = {name: source.features(name)[rows] for name in layout.widths}
            writer.write_block(block, features=features, **source.row_metadata(rows))
            on_block(block)
        writer.sync()


def kept_blocks(cache: Cache, text_hashes: Hashes) -> tuple[list[int], list[int]]:
    """Find the written blocks of an unfinished cache, and compare them with the table.

    Args:
        cache: The unfinished cache. It has as many rows as the table.
        text_hashes: (rows, 16) uint8, of the table's current rows.

    Returns:
        The blocks whose checksums match and whose texts are the table's, and the blocks whose checksums match but whose
        texts are others.
    """
    kept: list[int] = []
    other: list[int] = []
    for block in range(cache.layout.blocks):
        if cache.block_holds(block):
            rows = cache.layout.block_slice(block)
            same = np.array_equal(cache.text_hashes[rows], text_hashes[rows])
            (kept if same else other).append(block)
    return kept, other
