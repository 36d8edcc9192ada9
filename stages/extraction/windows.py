"""Windows of a table on their way to the encoder: read, looked up in other caches, tokenized."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ...cache.errors import EncoderError
from ..encoders.encoder import Encoder
from ..tables.scan import read_windows
from ..tables.table import Table, TableRows, join_rows
from ..types import Indices, Mask, TokenIds
from .resume import UnfinishedCache
from .reuse import ReusableCaches, RowLocations, find_rows

_SAMPLE_ROWS, _FEW_ROWS = 256, 100  # whose words an encoder must know; of fewer rows, unknown ones may be what they are
_JOINED_BYTES = 64 << 20  # most memory for the features of windows that are joined
_Part = tuple[slice, TableRows, RowLocations]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Some consecutive rows of a table."""

    span: slice  # their numbers among the table's good rows
    rows: TableRows
    reused: RowLocations  # where other caches hold their texts
    tokenized: Indices  # (tokenized rows,) positions in the window
    sequences: list[TokenIds]  # of the tokenized rows
    truncated: Mask  # (tokenized rows,) which texts had more tokens than their sequence

    def __len__(self) -> int:
        return len(self.rows)


def require_known_words(encoder: Encoder, rows: TableRows, table: str) -> None:
    """Refuse an encoder whose vocabulary lacks most of a table, where different texts would have the same features.

    Args:
        encoder: The encoder.
        rows: The first rows of the table.
        table: The table's name.

    Raises:
        EncoderError: in a sample of the table's first rows, more than half of the tokens are the unknown token, and
            there are fewer than half as many different token sequences as different texts.
    """
    if len(rows) < _FEW_ROWS:
        return
    sample = np.unique(np.linspace(0, len(rows) - 1, _SAMPLE_ROWS).astype(int))
    pairs = None if rows.pairs is None else [rows.pairs[row] for row in sample]
    texts = [rows.texts[row] for row in sample]
    sequences = encoder.tokenize(texts, pairs)[0]
    unknown = encoder.count_unknown(sequences).share
    distinct = len({sequence.tobytes() for sequence in sequences})
    different = len(set(texts if pairs is None else zip(texts, pairs, strict=True)))
    if unknown > 0.5 and 2 * distinct < different:
        raise EncoderError(
            f"{table}: the encoder's vocabulary lacks {unknown:.0%} of the tokens of {len(sample)} rows, so "
            f"{different} different texts become {distinct} sequences of tokens; choose an encoder of their language, "
            "or put its own tokenizer's files beside it"
        )


def tokenized_windows(
    table: Table, unfinished: UnfinishedCache, encoder: Encoder, reusable: ReusableCaches
) -> Iterator[Window]:
    """Read a table's rows, look up their texts in other caches, and tokenize the texts that no cache holds.

    A window whose blocks the unfinished cache holds is not tokenized.

    Raises:
        TableError: the table changed since it was scanned.
        EncoderError: the tokenizer makes no tokens of a text.
    """
    layout, scan, window_rows = unfinished.cache.layout, unfinished.scan, unfinished.cache.plan["window_rows"]
    kept = np.isin(np.arange(layout.blocks), list(unfinished.kept))
    parts = (
        (span, rows, find_rows(reusable.texts, scan.text_hashes[span]))
        for span, rows in read_windows(table, scan, window_rows)
    )
    most_rows = _JOINED_BYTES // (4 * sum(layout.widths.values()))
    for span, rows, reused in _joined(parts, window_rows, most_rows):
        lacking = np.empty(0, np.int64)
        if not kept[layout.blocks_of(span)].all():
            lacking = np.flatnonzero(reused["cache"] < 0)
        pairs = None if rows.pairs is None else [rows.pairs[row] for row in lacking]
        sequences, truncated = encoder.tokenize([rows.texts[row] for row in lacking], pairs)
        for row, sequence in zip(lacking, sequences, strict=True):
            if not len(sequence):
                place = rows.place(int(row))
                raise EncoderError(
                    f"{place}: the encoder's tokenizer makes no tokens of this text; change the text, or remove the row"
                )
        yield Window(span=span, rows=rows, reused=reused, tokenized=lacking, sequences=sequences, truncated=truncated)


def _joined(parts: Iterator[_Part], window_rows: int, most_rows: int) -> Iterator[_Part]:
    """Join windows of which other caches hold nearly all rows.

    The few texts that are left of each window would make small batches, which are slower than full ones. A window with
    half of its rows lacking is not joined. What is joined depends on the table and the caches alone, so a run that
    resumes joins the same windows.
    """
    held: list[_Part] = []
    lacking = 0
    for part in parts:
        held.append(part)
        span, _, reused = part
        lacking += int((reused["cache"] < 0).sum())
        if lacking >= window_rows // 2 or span.stop + window_rows - held[0][0].start > most_rows:
            yield _join(held)
            held, lacking = [], 0
    if held:
        yield _join(held)


def _join(parts: Sequence[_Part]) -> _Part:
    if len(parts) == 1:
        return parts[0]
    spans, rows, reused = zip(*parts, strict=True)
    return slice(spans[0].start, spans[-1].stop), join_rows(rows), np.concatenate(reused)
