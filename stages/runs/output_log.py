"""What a run of `predict` has found so far, in a file beside its output: a run that was killed carries on from there.

The file holds what the head said, and no rows. The next run reads the table again and writes all of the output. So the
output has the same bytes as without the kill, in every format; columns besides the texts may have changed meanwhile.
"""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ...cache.errors import storage_errors
from ...cache.hashing import HASH_BYTES, digest
from ...cache.siblings import partial_path, work_path
from ...cache.workspace import foreign, is_plain_file
from ..types import Features, Mask

_BEGINNING = b"headstart-predict 1\n"
_NUMBERS = 5


@dataclasses.dataclass(frozen=True)
class WindowOutputs:
    """What a head said of some consecutive rows of a table."""

    good: Mask  # (rows,) which rows have a prediction
    outputs: Features  # (good rows, outputs) float32
    unknown: int = 0  # tokens that the encoder's vocabulary lacks
    tokens: int = 0  # tokens without special ones

    def to_bytes(self, texts: bytes) -> bytes:
        """The entry of a window: its checksum, the hash of its texts, five int64 of sizes, and the arrays."""
        numbers = [*self.outputs.shape, len(self.good), self.unknown, self.tokens]
        body = texts + np.array(numbers, "<i8").tobytes() + self.good.tobytes() + self.outputs.astype("<f4").tobytes()
        return digest(body) + body


class OutputLog:
    """Entries of windows, in the order of the table. Nothing is made before the first one is added.

    Attributes:
        path: The file.
        is_other: It holds another work's entries, none of which is used.
        kept: Rows of the windows that it held.
        changed: The table's texts differ from some window on.
    """

    def __init__(self, out: Path, work: bytes) -> None:
        """Open the file of an output, if there is one.

        Args:
            out: The output.
            work: A hash of all that decides what the head says, but the texts: 16 bytes.

        Raises:
            OutputExistsError: something else stands where the file belongs.
            StorageError: it cannot be read.
        """
        self.path, self.kept, self.is_other, self.changed = partial_path(out), 0, False, False
        self._out = out
        self._header, self._reads, self._end = _BEGINNING + work, False, 0
        self._file: io.BufferedRandom | None = None
        with storage_errors(f"cannot read {self.path}"):
            if not os.path.lexists(self.path):
                return
            if not is_plain_file(self.path):
                raise foreign(self.path)
            self._file = self.path.open("rb+")
            beginning = self._file.read(len(self._header))
        if not beginning.startswith(_BEGINNING):
            self._file.close()
            raise foreign(self.path)
        self._reads = beginning == self._header
        self.is_other = not self._reads
        self._end = len(beginning) if self._reads else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def find(self, texts: bytes) -> WindowOutputs | None:
        """Return the entry of the next window, if its texts have this hash. After None, every later call gives None."""
        if not self._reads or self._file is None:
            return None
        with storage_errors(f"cannot read {self.path}"):
            entry = _read_entry(self._file, texts)
            self._reads = entry is not None
            if entry is None:  # cut short, or of other texts
                self._file.seek(self._end + HASH_BYTES)
                self.changed = self._file.read(HASH_BYTES) not in (b"", texts)
                return None
            self._end = self._file.tell()
        self.kept += len(entry.good)
        return entry

    def add(self, texts: bytes, found: WindowOutputs) -> None:
        """Add the entry of the next window; the output's work folder is there.

        Raises:
            StorageError: the file cannot be written.
        """
        with storage_errors(f"cannot write {self.path}"):
            if self._file is None:  # it appears with its beginning: an empty file may be anybody's
                new = work_path(self._out) / "partial"
                self._file = new.open("xb+")
                self._file.write(self._header)
                self._file.flush()
                new.replace(self.path)
            if not self._end:
                self._end = len(self._header)
                self._file.seek(0)
                self._file.write(self._header)
            self._file.seek(self._end)
            self._file.truncate()
            self._file.write(found.to_bytes(texts))
            self._file.flush()
            self._end = self._file.tell()

    def remove(self) -> None:
        """Remove the file: the output is complete."""
        if self._file is not None:
            self._file.close()
            with storage_errors(f"cannot remove {self.path}"):
                self.path.unlink(missing_ok=True)


def _read_entry(file: io.BufferedRandom, texts: bytes) -> WindowOutputs | None:
    """Read an entry; None if it is not whole, or not of these texts."""
    head = file.read(2 * HASH_BYTES + 8 * _NUMBERS)
    if len(head) < 2 * HASH_BYTES + 8 * _NUMBERS or head[HASH_BYTES : 2 * HASH_BYTES] != texts:
        return None
    good, width, rows, unknown, tokens = np.frombuffer(head[2 * HASH_BYTES :], "<i8").tolist()
    if not (0 <= good <= rows < 1 << 32 and 0 < width < 1 << 32):
        return None
    body = file.read(rows + 4 * good * width)
    if digest(head[HASH_BYTES:], body) != head[:HASH_BYTES]:
        return None
    outputs = np.frombuffer(body[rows:], "<f4").reshape(good, width).astype(np.float32)
    return WindowOutputs(np.frombuffer(body[:rows], bool), outputs, unknown, tokens)
