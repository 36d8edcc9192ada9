"""Writing a cache: rows land in place, a block counts when its checksum holds, the last step is a rename."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import HeadstartError, StorageError
from .hashing import Hashes, digest
from .identity import Identity
from .layout import RECORD_BYTES, ROW_METADATA, Layout, create_file, read_layout, storage_errors
from .reader import Cache, Labels, block_checksum


def partial_path(path: Path) -> Path:
    """The name that a cache bears until it is complete."""
    return path.with_name(path.name + ".partial")


def encode_document(value: Any) -> bytes:
    """A document as it is stored: JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


class CacheWriter:
    """Writes the blocks of one unfinished cache file, and makes it a finished one.

    The file's HDF5 structure is complete before this class sees it, so blocks are plain writes at known places:
    a kill at any instant leaves a file whose structure is whole and whose written blocks hold. No write is
    ordered before another: a checksum that arrives before its rows does not hold, and the block is written again.
    """

    def __init__(self, path: Path) -> None:
        """Open the unfinished file at ``path`` (the name that ends in ``.partial``)."""
        self.path = path
        self.layout, self._spans = read_layout(path)
        self._lock = threading.Lock()  # facts and blocks may be written from two threads
        with storage_errors(f"cannot write {path}"):
            self._file = path.open("rb+", buffering=0)

    def write_block(
        self, block: int, *, features: Mapping[str, npt.NDArray[Any]], **row_metadata: npt.NDArray[Any]
    ) -> None:
        """Write one block's rows and their checksum.

        Args:
            block: The block's number.
            features: By name, (rows of the block, width); cast to the stored dtype.
            facts: ``text_hashes`` and ``token_hashes`` (rows of the block, 16) uint8; ``lengths`` (rows of the block,)
                int32; ``cut`` (rows of the block,) uint8.
        """
        rows = self.layout.block_slice(block)
        stored = {f"features/{n}": features[n].astype(self._spans[f"features/{n}"].dtype) for n in sorted(features)}
        stored |= {dataset: row_metadata[name] for name, dataset in ROW_METADATA.items()}
        for name, array in stored.items():
            self._write(name, rows.start, array)
        checksum = block_checksum(rows, list(stored.values()))
        self._write("checksums/blocks", block, np.frombuffer(checksum, np.uint8))

    def write_row_metadata(self, row: int, **row_metadata: npt.NDArray[Any]) -> None:
        """Write facts, as for `write_block`, of the rows from this one on. They count when their block is written."""
        for name, array in row_metadata.items():
            self._write(ROW_METADATA[name], row, array)

    def finish(self, record: Mapping[str, Any], path: Path) -> None:
        """Write the record of the run, make every byte durable, and give the file its final name in one step."""
        self._write_document("record", record)
        self.sync()
        with storage_errors(f"cannot complete {path}"):
            if not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                raise StorageError(f"another run took the place of {self.path}; {path} is as it was: run this again")
            self._file.close()
        replace_durably(self.path, path)

    def sync(self) -> None:
        """Make what was written durable."""
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
            raise HeadstartError(f"{self.path}: the {name} takes {len(content)} bytes, and {room} were set aside")
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
            while data:  # a write may be cut short
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
) -> None:
    """Make an unfinished cache: everything that is known before the first row is encoded, and room for the rest.

    Args:
        path: The unfinished file's name. It appears there complete in structure, or not at all.
        block_rows: Rows that share a checksum.
        widths: Columns of each feature, by name.
        storage: ``float32`` or ``float16``.
        identity: What the features will be of.
        plan: How rows are batched, and on what kind of device; a later run that carries on compares it.
        text_hashes: (rows, 16) uint8.
        labels: (rows,) int64, or None.
        label_names: The classes, in the order of their numbers, or None.

    Raises:
        StorageError: the folder cannot be written, or there is no room for the whole file.
    """
    documents: dict[str, Any] = {"identity": json.loads(identity.to_json()), "plan": plan}
    if label_names is not None:
        documents["label_names"] = list(label_names)
    layout = Layout(
        rows=len(text_hashes),
        block_rows=block_rows,
        widths=widths,
        storage=storage,
        labelled=labels is not None,
        document_bytes={**{n: len(encode_document(v)) for n, v in documents.items()}, "record": RECORD_BYTES},
    )
    scratch = path.with_name(path.name + ".new")
    try:
        create_file(scratch, layout)
        with CacheWriter(scratch) as writer:
            for name, value in documents.items():
                writer._write_document(name, value)
            writer._write("hashes/text", 0, text_hashes)
            if labels is not None:
                writer._write("labels", 0, labels.astype("<i8"))
                for block in range(layout.blocks):
                    rows = layout.block_slice(block)
                    checksum = block_checksum(rows, [labels[rows].astype("<i8")])
                    writer._write("checksums/labels", block, np.frombuffer(checksum, np.uint8))
            writer.sync()
        replace_durably(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def copy_with_labels(
    source: Cache, path: Path, *, labels: Labels | None, label_names: tuple[str, ...] | None
) -> list[int]:
    """Copy a cache's rows into a new unfinished file that bears other labels, durably; nothing is encoded.

    Returns:
        The blocks that were left out because their checksums do not hold in ``source``.
    """
    layout = source.layout
    create_cache(
        path,
        block_rows=layout.block_rows,
        widths=layout.widths,
        storage=layout.storage,
        identity=source.identity,
        plan=source.plan,
        text_hashes=source.text_hashes,
        labels=labels,
        label_names=label_names,
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
    return left_out


def kept_blocks(cache: Cache, text_hashes: Hashes) -> tuple[list[int], list[int]]:
    """Sort the written blocks of an unfinished cache by whether they still fit the table.

    Args:
        cache: The unfinished cache, of as many rows as the table.
        text_hashes: (rows, 16) uint8, of the table as it is now.

    Returns:
        The blocks that hold and whose rows are this table's, and those that hold but are of other rows.
    """
    kept: list[int] = []
    other: list[int] = []
    for block in range(cache.layout.blocks):
        if cache.block_holds(block):
            rows = cache.layout.block_slice(block)
            same = np.array_equal(cache.text_hashes[rows], text_hashes[rows])
            (kept if same else other).append(block)
    return kept, other


def replace_durably(path: Path, target: Path) -> None:
    """Rename a file whose bytes are durable, and make the rename durable too, where the system can."""
    with storage_errors(f"cannot write {target}"):
        path.replace(target)
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
