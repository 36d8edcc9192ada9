"""What CSV, TSV, JSON lines and plain text files have in common: an encoding, lines, and rows that can be left out."""

from __future__ import annotations

import codecs
import dataclasses
import functools
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...cache.documents import is_text
from ...cache.errors import TableError
from ..settings import BY_NAME, TableSettings
from .columns import skip_advice

COMPRESSIONS = {".gz": "gzip", ".gzip": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".br": "brotli"}
BATCH_ROWS, BATCH_CHARACTERS = 8192, 1 << 22
"""Most rows in a batch; and a batch ends with the row that makes it longer than this."""
_BLOCK_CHARACTERS = 1 << 16
_PEEK_BYTES = 1 << 22
"""How much of a file the guess of its encoding rests on."""


def text_array(cells: list[str]) -> pa.LargeStringArray:
    """The cells as an Arrow array.

    `pyarrow.array` takes less time for each cell, but a tenth of a second at its first call: it imports pandas, where
    that is installed.
    """
    encoded = [cell.encode() for cell in cells]
    ends = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(one) for one in encoded], out=ends[1:])
    return pa.LargeStringArray.from_buffers(len(encoded), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


@dataclasses.dataclass(kw_only=True)
class Reading:
    """One reading of a file.

    Attributes:
        file: The file.
        settings: How to read it.
        skip_bad_rows: Leave out rows that cannot be read, instead of raising. None: raise, without the advice to skip
            them.
        note: Receives what the user should know of the file.
        left_out: The rows that were left out so far, by number, and why. No batch holds these rows.
        characters: How many characters were read so far.
        is_text: Whether all lines that were read so far are text in the file's encoding.
    """

    file: Path
    settings: TableSettings = BY_NAME
    skip_bad_rows: bool | None = None
    note: Callable[[str], None] = lambda text: None
    left_out: dict[int, str] = dataclasses.field(default_factory=dict)
    characters: int = 0
    is_text: bool = True

    def leave_out(self, number: int, problem: str) -> None:
        """Leave out a row. A note tells of the first.

        Raises:
            TableError: bad rows are not to be skipped.
        """
        if not self.skip_bad_rows:
            raise TableError(f"{self.file}, {problem}{skip_advice(self.skip_bad_rows)}")
        if not self.left_out:
            self.note(f"{self.file}, {problem}; rows like this one are skipped")
        self.left_out[number] = problem.partition(": ")[2]

    def lines(self) -> Iterator[str]:
        """Yield the lines with their ends (CR, LF or both). A byte that cannot be decoded becomes a lone surrogate.

        Raises:
            TableError: the file is UTF-16 or UTF-32, or no text, and no encoding is set.
            UnicodeError: the encoding has no such surrogates, and a byte cannot be decoded.
        """
        with self._stream() as stream:
            # The marks of UTF-16 are no UTF-8, and most of its Western characters have a byte that is zero.
            start = stream.read(4)
        if self.settings.encoding is None and start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise TableError(f"{self.file} is not UTF-8{self.encoding_advice()}")
        encoding = self.settings.encoding or "utf-8"
        with self._stream() as stream, io.TextIOWrapper(stream, encoding, "surrogateescape", newline="") as lines:
            first = next(lines, "").removeprefix("\ufeff")
            if "\0" in first and self.settings.encoding is None:
                raise TableError(f"{self.file} is no text in UTF-8{self.encoding_advice()}")
            block = [first] if first else []
            while block:
                text = "".join(block)
                self.characters += len(text)
                self.is_text &= is_text(text)
                yield from block
                block = lines.readlines(_BLOCK_CHARACTERS)

    def encoding_problem(self, text: str) -> str:
        """Return what is wrong with a text that has a lone surrogate: its byte, and what to do."""
        byte = next(ord(character) & 0xFF for character in text if not is_text(character))
        return f"is not {(self.settings.encoding or 'utf-8').upper()} (byte {byte:#04x}){self.encoding_advice()}"

    def encoding_advice(self) -> str:
        """Return the end of a message about a file that its encoding does not fit: which encoding may be its own."""
        if self.settings.encoding or not self._likely_encodings:
            return "; correct it, or pass the file's `encoding`"
        guess, *others = self._likely_encodings
        valid = guess.upper() + (f" (and {', '.join(others).upper()})" if others else "")
        return f"; the file's bytes are valid {valid}: if that is its encoding, pass `encoding='{guess}'`"

    def _stream(self) -> pa.NativeFile:
        return pa.input_stream(str(self.file), compression=COMPRESSIONS.get(self.file.suffix.lower()))

    @functools.cached_property
    def _likely_encodings(self) -> list[str]:
        """Return the encodings that the file's bytes are valid in, of those that they may have; the likeliest first."""
        with self._stream() as stream:
            content = stream.read(_PEEK_BYTES)
        zeros = content.count(0)
        if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
            candidates = ["utf-32"]
        elif content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            candidates = ["utf-16"]
        elif zeros:
            order = ("le", "be") if content[1::2].count(0) * 2 > zeros else ("be", "le")
            candidates = [f"utf-{bits}-{end}" for bits in (32, 16) for end in order]
        else:
            text = content.decode("utf-8", "surrogateescape")
            bad = len(re.findall("[\udc80-\udcff]", text))
            runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", content)]
            # In Chinese texts, bytes above 127 stand side by side; in Western ones, most of them stand alone.
            candidates = ["gb18030" if sum(run for run in runs if run > 1) * 2 > sum(runs) else "cp1252"]
            if len(re.findall("[^\x00-\x7f]", text)) > 2 * bad:  # most of it is UTF-8: a few bytes are wrong
                candidates = []
        likeliest = next((name for name in candidates if _is_valid(content, name)), None)
        others = ("big5", "cp932", "euc_jp", "euc_kr") if likeliest == "gb18030" else ()  # which look like it
        return [*filter(None, [likeliest]), *(name for name in others if _is_valid(content, name))]


def _is_valid(content: bytes, encoding: str) -> bool:
    """Return whether bytes are text in an encoding; the last character may be cut."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeError:
        return False
    return bool(text.strip("\0")) and "\0" not in text[:64]
