"""Rows that other caches already hold: their features are copied instead of encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...cache.errors import IdentityError
from ...cache.hashing import Hashes
from ...cache.identity import Identity, differences
from ...cache.reader import Cache, open_any, open_cache
from ..progress import Note, Report, Step, silent
from ..types import Indices
from .row_index import RowIndex

RowLocations = npt.NDArray[np.void]
"""Where some caches hold the rows that were asked for: (rows,) with the fields ``cache``, the number of a cache or -1
where none holds the row, and ``row``, the row in that cache."""


class ReusableCaches:
    """Caches to reuse, with indexes of their rows by texts and by token sequences."""

    def __init__(self, caches: Iterable[Cache], report: Report) -> None:
        """Read every cache once; blocks whose checksums do not hold are left out."""
        self.caches = list(caches)
        self.texts: list[RowIndex] = []  # of each cache, as `find_rows` takes them
        self.sequences: list[RowIndex] = []
        for cache in self.caches:
            whole = cache.whole_blocks(reporting_blocks(cache, report))
            if cache.record and not whole.all():
                damaged = f"{int((~whole).sum())} of {cache.layout.blocks} blocks are damaged"
                report(Note(f"{cache.path}: {damaged}, and are not reused"))
            rows = np.flatnonzero(np.repeat(whole, cache.layout.block_rows)[: cache.rows])
            self.texts.append(RowIndex(cache.text_hashes, rows))
            self.sequences.append(RowIndex(cache.token_hashes, rows))

    @classmethod
    def joined(cls, parts: Iterable[ReusableCaches]) -> ReusableCaches:
        """The caches of some, which are not read again."""
        whole = cls((), silent)
        for part in parts:
            whole.caches += part.caches
            whole.texts += part.texts
            whole.sequences += part.sequences
        return whole


def find_rows(indexes: Sequence[RowIndex], hashes: Hashes) -> RowLocations:
    """Find rows by their hashes, (rows, 16) uint8, in an index of each cache; the first that holds a row gives it."""
    locations = np.full(len(hashes), -1, [("cache", np.int64), ("row", np.int64)])
    for number, index in enumerate(indexes):
        asked = np.flatnonzero(locations["cache"] < 0)
        rows = index.find(hashes[asked])
        held = asked[rows >= 0]
        locations["cache"][held], locations["row"][held] = number, rows[rows >= 0]
    return locations


def by_cache(caches: Sequence[Cache], locations: RowLocations) -> Iterator[tuple[Cache, Indices, Indices]]:
    """Group locations: yield each cache that holds some of the rows, their positions, and their rows there."""
    for number, cache in enumerate(caches):
        positions = np.flatnonzero(locations["cache"] == number)
        if len(positions):
            yield cache, positions, locations["row"][positions]


def open_reusable(paths: Iterable[Path], identity: Identity, storage: str, *, superseded: bool = False) -> list[Cache]:
    """Open caches to reuse their rows for features of an identity, stored as ``storage``.

    A cache may hold more features, and one in float32 serves float16, too. ``superseded`` caches are unfinished ones of
    a previous table version; others are finished.

    Raises:
        IdentityError: a cache has another identity, lacks a feature, or stores features less exactly.
        FormatError: one of them is not a cache, or is not finished.
        DamagedError: one of them has a damaged structure or document.
    """
    opened = [open_any(path) if superseded else open_cache(path) for path in paths]
    caches = [file for cache in opened for file in cache.files]
    advice = "remove it, or pass `overwrite=True`" if superseded else "leave it out, or extract it again"
    for cache in caches:
        shared = [name for name in identity.features if name in cache.identity.features]
        found, requested = (one.narrowed(*shared) for one in (cache.identity, identity))
        problems = differences(found, requested, our_name=str(cache.path), their_name="this run")
        if lacking := [name for name in identity.features if name not in cache.identity.features]:
            problems.append(f"features ({cache.path} lacks {', '.join(lacking)})")
        if cache.layout.storage not in (storage, "float32"):
            problems.append(f"storage ({cache.path}: {cache.layout.storage}, this run: {storage})")
        if problems:
            raise IdentityError(f"{cache.path} cannot be reused here: they differ in {'; '.join(problems)}; {advice}")
    return caches


def reporting_blocks(cache: Cache, report: Report) -> Callable[[int], None]:
    """Return a callback for the methods that check a cache's blocks: it reports how many are checked."""
    return lambda block: report(Step("checking", block + 1, cache.layout.blocks, "blocks"))
