"""What CSV, TSV and JSON lines files have in common: UTF-8, lines, and blocks that a row must fit in."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from ...cache.errors import TableError


def require_no_utf16(file: Path) -> None:
    """Refuse a file that begins with a byte order mark of UTF-16.

    Raises:
        TableError: the file is UTF-16.
    """
    with pa.input_stream(str(file)) as stream:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise TableError(f"{file} is UTF-16, and must be UTF-8; convert it, e.g. with iconv -f UTF-16 -t UTF-8")


def numbered_lines(file: Path, *, errors: str = "replace") -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that are not blank, each with its number from 1.

    Args:
        file: The file, which may be compressed.
        errors: What to do with bytes that are not UTF-8, as for `open`.
    """
    with pa.input_stream(str(file)) as stream, io.TextIOWrapper(stream, "utf-8-sig", errors=errors) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line


def read_in_blocks(
    read: Callable[[int], Iterator[pa.RecordBatch]], block_bytes: Sequence[int], file: Path
) -> Iterator[pa.RecordBatch]:
    """Read a file in small blocks; where a row is longer than a block, go on from that row with larger ones.

    Args:
        read: Reads the whole file in blocks of this many bytes.
        block_bytes: The sizes to try, in order.
        file: The file, for a message.

    Raises:
        TableError: a row is longer than the largest block.
    """
    rows_done = 0
    for size in block_bytes:
        to_skip = rows_done
        try:
            for batch in read(size):
                skipped = min(to_skip, len(batch))
                to_skip -= skipped
                yield batch.slice(skipped)
                rows_done += len(batch) - skipped
            return
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):  # Arrow's word for a row that does not end in its block
                raise
    raise TableError(
        f"{file}, after row {rows_done:,}: a row is longer than {block_bytes[-1]:,} bytes; is a quotation mark left "
        "open?"
    )
