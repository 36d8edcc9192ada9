"""What the benchmark encodes, and how much work that is counted as. Plain Python and numpy alone."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def read_texts(table: Path) -> Counter[str]:
    """The distinct texts of a CSV table, in the order of their first rows, each with the number of its copies."""
    with table.open(encoding="utf-8", newline="") as file:
        return Counter(row["text"] for row in csv.DictReader(file))


def read_rows(table: Path) -> list[tuple[str, str]]:
    """The text and the label of each row of a CSV table."""
    with table.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def draw_pieces(lengths: Sequence[int], *, tokens: int, pieces: int, seed: int) -> list[Indices]:
    """Draw pieces of a table of distinct texts, so that together they are of all its lengths.

    The texts are sorted by length and cut into runs of about ``tokens``; the runs are divided into as many strata as
    pieces are wanted, and one run of each is drawn. So a piece holds texts that are neighbours in length, as a batch
    of a whole sorted table does: a contender that sorts and pads finds as little padding as it would find there,
    which it would not in a handful of texts of any length. Every token of the table is as likely to be drawn as
    any other, as nearly as runs allow.

    Args:
        lengths: (texts,) tokens of each distinct text.
        tokens: Most tokens in a piece, counted as padded: texts x the longest.
        pieces: How many to draw.
        seed: Fixes the draw.

    Returns:
        Indices into ``lengths``, one array a piece, from short texts to long, each in a random order.

    Raises:
        ValueError: the table is too small for so many pieces.
    """
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    ends = np.asarray(lengths)[order]
    runs, stop = [], len(order)
    while stop:
        start = max(0, stop - max(1, tokens // int(ends[stop - 1])))
        runs.append(order[start:stop])
        stop = start
    runs.reverse()
    if len(runs) < pieces:
        raise ValueError(f"{len(runs)} runs of {tokens:,} tokens are too few for {pieces} pieces; ask for fewer")
    rng = np.random.default_rng(seed)
    strata = np.array_split(np.arange(len(runs)), pieces)
    return [rng.permutation(runs[rng.choice(stratum)]) for stratum in strata]


def as_they_stand(texts: Sequence[str], copies: Counter[str], *, seed: int) -> list[str]:
    """Every copy that the table has of some distinct texts, in a random order."""
    every = [text for text in texts for _ in range(copies[text])]
    return [every[i] for i in np.random.default_rng(seed).permutation(len(every))]


FORMULA = (
    "2 x (4 x width^2 + 2 x width x ffn) + 2 x 2 x length x width FLOP for each real token of each layer: the four "
    "projections, the feed-forward's two, and attention's scores and sums; every layer, every copy and all that "
    "a contender skips is counted, padding is not"
)


def counted_flop(lengths: Sequence[int] | Indices, *, layers: int, width: int, ffn: int) -> float:
    """The work of a full model over texts of so many real tokens, by `FORMULA`."""
    tokens = np.asarray(lengths, np.float64)
    per_token = 2 * (4 * width**2 + 2 * width * ffn) + 2 * 2 * tokens * width  # (texts,)
    return float((layers * tokens * per_token).sum())
