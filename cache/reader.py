"""Reading a cache: rows mapped without copying, and checksums that say whether they are whole."""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .documents import are_names, checked, parse_json
from .errors import DamagedError, FormatError, HeadstartError, UserError
from .hashing import Hashes, digest
from .identity import Identity
from .layout import ROW_METADATA, Layout, Span, read_layout, storage_errors
from .record import Plan, Record, checked_record

_TESTING_THREADS = 4
"""Each holds a block in memory. More than 2 cores: not tried."""
Features = npt.NDArray[np.floating[Any]]
"""Features, (rows, width) float32 or float16."""
Labels = npt.NDArray[np.int64]
"""Class numbers, (rows,) int64, each an index into the label names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """An open cache. Arrays are read-only maps of the file: rows are read when they are looked at.

    Attributes:
        path: The file.
        layout: Rows, blocks, widths and storage.
        identity: What the features are of; see `Identity`.
        plan: How the rows were batched, and on what kind of device.
        record: The record of the run: rows, tokens, seconds, speed, machine. Empty in an unfinished file.
        label_names: The classes, in the order of their numbers; None without labels.
        labels: (rows,) int64; None without labels.
        text_hashes: (rows, 16) uint8, one hash per row's text.
        token_hashes: (rows, 16) uint8, one hash per row's token sequence.
        lengths: (rows,) int32, tokens in each row's sequence.
        cut: (rows,) uint8, 1 where the text had more tokens than that.
    """

    path: Path
    layout: Layout
    identity: Identity
    plan: Plan
    record: Record
    label_names: tuple[str, ...] | None
    labels: Labels | None
    text_hashes: Hashes
    token_hashes: Hashes
    lengths: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.uint8]
    block_checksums: Hashes
    label_checksums: Hashes | None
    _features: Mapping[str, Features]

    @property
    def rows(self) -> int:
        return self.layout.rows

    def features(self, name: str = "cls") -> Features:
        """One feature of every row: (rows, width) float32 or float16, mapped and read-only.

        Raises:
            UserError: the cache does not hold this feature.
        """
        if name not in self._features:
            held = ", ".join(sorted(self._features))
            raise UserError(f"{self.path} holds no feature {name!r}; it holds: {held}")
        return self._features[name]

    def block_holds(self, block: int) -> bool:
        """Whether a block's features and hashes are the ones that its checksum was taken of."""
        rows = self.layout.block_slice(block)
        arrays = [*(self._features[name] for name in sorted(self._features)), *(getattr(self, n) for n in ROW_METADATA)]
        return self._holds(rows, arrays, self.block_checksums[block])

    def row_metadata(self, rows: slice) -> dict[str, npt.NDArray[Any]]:
        """Everything but their features that a block holds of these rows, by name."""
        return {name: getattr(self, name)[rows] for name in ROW_METADATA}

    def whole_blocks(self, on_block: Callable[[int], None] = lambda block: None) -> npt.NDArray[np.bool_]:
        """(blocks,) bool: whose features and hashes hold. Reads every row once.

        Args:
            on_block: Called with each block's number once it is read.
        """
        return self._each_block(self.block_holds, on_block)

    def damaged_blocks(self, on_block: Callable[[int], None] = lambda block: None) -> list[int]:
        """Read every row once and list the blocks whose checksum does not hold, of features or of labels.

        Args:
            on_block: Called with each block's number once it is read.
        """
        whole = self._each_block(lambda block: self.block_holds(block) and self.block_labels_hold(block), on_block)
        found: list[int] = np.flatnonzero(~whole).tolist()
        return found

    def check(self, on_block: Callable[[int], None] = lambda block: None) -> None:
        """Read every row once, and raise where any is damaged.

        Args:
            on_block: Called with each block's number once it is read.

        Raises:
            DamagedError: a checksum does not hold, or a label is out of range.
        """
        if damaged := self.damaged_blocks(on_block):
            rows = self.layout.block_slice(damaged[0])
            raise DamagedError(
                f"{self.path}: {len(damaged)} of {self.layout.blocks} blocks are damaged, the first at rows "
                f"{rows.start + 1:,} to {rows.stop:,}; extract again with `overwrite=True`"
            )
        self.label_counts()

    def label_counts(self) -> dict[str, int] | None:
        """How many rows each class has, by its name; None without labels.

        Raises:
            DamagedError: the labels' checksums do not hold, or a label is out of range.
        """
        if self.labels is None or self.label_names is None:
            return None
        classes = len(self.label_names)
        whole = all(self.block_labels_hold(block) for block in range(self.layout.blocks))
        if not whole or not 0 <= self.labels.min() <= self.labels.max() < classes:
            raise DamagedError(f"{self.path}: its labels are damaged, or outside 0 to {classes - 1}")
        counts = np.bincount(self.labels, minlength=classes)
        return {name: int(count) for name, count in zip(self.label_names, counts, strict=True)}

    def block_labels_hold(self, block: int) -> bool:
        """Whether a block's labels are the ones that their checksum was taken of, where there are any."""
        if self.labels is None or self.label_checksums is None:
            return True
        return self._holds(self.layout.block_slice(block), [self.labels], self.label_checksums[block])

    def _each_block(self, test: Callable[[int], bool], on_block: Callable[[int], None]) -> npt.NDArray[np.bool_]:
        """(blocks,) bool: what a test says of each. Hashing lets other threads run, so several test at a time."""
        found = np.zeros(self.layout.blocks, bool)
        with ThreadPoolExecutor(_TESTING_THREADS, "headstart-check") as pool:
            try:
                for block, holds in enumerate(pool.map(test, range(self.layout.blocks))):
                    found[block] = holds
                    on_block(block)
            finally:
                pool.shutdown(cancel_futures=True)
        return found

    def _holds(self, rows: slice, arrays: list[npt.NDArray[Any]], expected: npt.NDArray[np.uint8]) -> bool:
        """Whether these rows can be read, and are those that a checksum was taken of."""
        try:
            checksum = block_checksum(rows, [_rows_of(array, rows) for array in arrays])
        except OSError:  # the disk cannot give them: no less damaged than if it gave others
            return False
        return checksum == expected.tobytes()


def open_cache(path: str | Path) -> Cache:
    """Open a finished cache, checking its structure, identity and documents (not its rows: see `Cache.check`).

    Raises:
        NotOursError: there is no such file, it is not one of ours, it is unfinished, or of a newer version.
        DamagedError: it is cut short, its structure is wrong, or a document's checksum does not hold.
        StorageError: it cannot be read.
    """
    cache = _open(Path(path), finished=True)
    if not cache.record:
        raise FormatError(f"{path} is not finished; run the same headstart extract again to carry on with it")
    return cache


def open_any(path: Path) -> Cache:
    """Open a cache, finished or not. An unfinished one has an empty record, and blocks that do not hold.

    The record is what a run writes last: one that does not hold is that of a run that was killed meanwhile.
    """
    return _open(path, finished=False)


def _open(path: Path, *, finished: bool) -> Cache:
    """Open a cache that another run may replace meanwhile: what is read is of one file, the old or the new."""
    while True:
        before = _file_at(path)
        try:
            cache = _read(path, finished=finished)
        except (HeadstartError, ValueError) as error:
            if before is not None and _file_at(path) != before:
                continue
            if isinstance(error, ValueError):  # of a map past the end
                raise DamagedError(f"{path} was cut short while it was opened: {error}") from None
            raise
        if _file_at(path) == before:
            return cache


def _file_at(path: Path) -> tuple[int, int] | None:
    """Which file bears a name; None for none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _read(path: Path, *, finished: bool) -> Cache:
    layout, spans = read_layout(path)
    with storage_errors(f"cannot read {path}"):
        documents = {name: _read_document(path, name, spans, finished=finished) for name in layout.document_bytes}
        arrays = {name: span.map(path) for name, span in spans.items() if span.shape}
    names = documents.get("label_names")
    if layout.labelled != (names is not None) or not (names is None or are_names(names)):
        raise DamagedError(f"{path}: its label names are not a list of distinct names, one list for its labels")
    plan = checked(documents["plan"], Plan, f"{path}: its plan")
    if documents["record"] != {}:
        checked_record(documents["record"], layout.rows, f"{path}: its record")
    identity = Identity.from_dict(documents["identity"], str(path))
    if set(identity.features) != set(layout.widths):
        raise DamagedError(
            f"{path}: it holds the features {sorted(layout.widths)}, its identity says {list(identity.features)}"
        )
    fields: dict[str, Any] = {
        "labels": arrays.get("labels"),
        **{name: arrays[dataset] for name, dataset in ROW_METADATA.items()},
        "block_checksums": arrays["checksums/blocks"],
        "label_checksums": arrays.get("checksums/labels"),
        "_features": {name: arrays[f"features/{name}"] for name in layout.widths},
    }
    return Cache(
        path=path,
        layout=layout,
        identity=identity,
        plan=plan,
        record=documents["record"],
        label_names=None if names is None else tuple(names),
        **fields,
    )


def _rows_of(array: npt.NDArray[Any], rows: slice) -> npt.NDArray[Any]:
    """Rows of a whole map, read from its file: what a failing disk cannot give is an error then, where to look at the
    map would end the process."""
    if not (isinstance(array, np.memmap) and array.filename and isinstance(array.base, mmap.mmap)):
        return array[rows]
    row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
    with Path(array.filename).open("rb") as file:
        file.seek(array.offset + rows.start * row_bytes)
        return np.frombuffer(file.read((rows.stop - rows.start) * row_bytes), np.uint8)


def block_checksum(rows: slice, parts: list[npt.NDArray[Any]]) -> bytes:
    """The checksum of some arrays of a block: of its place, so that no block passes for another, then of each."""
    return digest(np.array([rows.start, rows.stop], "<u8"), *parts)


def _read_document(path: Path, name: str, spans: Mapping[str, Span], *, finished: bool) -> Any:
    """Read one JSON document. A record that was never written, or not to its end, reads as an empty object."""
    content = _read_bytes(path, spans[name])
    checksum = _read_bytes(path, spans[f"checksums/{name}"])
    if name == "record" and not any(checksum) and not any(content):
        return {}
    if digest(content) != checksum:
        if name == "record" and not finished:
            return {}
        raise DamagedError(
            f"{path}: its {name} is damaged (the checksum does not hold); extract again with `overwrite=True`"
        )
    return parse_json(content.rstrip(b"\0"), f"{path}: its {name}")


def _read_bytes(path: Path, span: Span) -> bytes:
    with path.open("rb") as file:
        file.seek(span.offset)
        return file.read(span.nbytes)
