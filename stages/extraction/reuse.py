"""Rows that other caches of the same identity hold already: they are copied, and never encoded again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...cache.errors import IdentityError
from ...cache.hashing import Hashes
from ...cache.identity import Identity, differences
from ...cache.reader import Cache
from ..progress import Note, Report, Step
from .row_index import Indices, RowIndex


@dataclasses.dataclass
class RowLocations:
    """For each row that was asked for, where it stands.

    Attributes:
        donors: (rows,) int64, the number of the cache; -1 where no cache has the row.
        rows: (rows,) int64, its row there.
    """

    donors: Indices
    rows: Indices

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        return self.donors >= 0


def join_locations(parts: Sequence[RowLocations]) -> RowLocations:
    """Those of consecutive rows, as one."""
    return RowLocations(np.concatenate([part.donors for part in parts]), np.concatenate([part.rows for part in parts]))


class ReusableCaches:
    """Some caches, asked for rows by their texts or by their token sequences. The first that has a row gives it."""

    def __init__(self, caches: Sequence[Cache], report: Report) -> None:
        """Read the caches once, and leave out the blocks whose checksums do not hold."""
        self.caches = list(caches)
        self._by_text: list[RowIndex] = []
        self._by_tokens: list[RowIndex] = []
        for cache in self.caches:
            blocks = cache.layout.blocks

            def checked(block: int, blocks: int = blocks) -> None:
                report(Step("checking", block + 1, blocks, "blocks"))

            whole = cache.whole_blocks(checked)
            if cache.record and not whole.all():
                report(Note(f"{cache.path}: {int((~whole).sum())} of {blocks} blocks are damaged, and are not reused"))
            rows = np.flatnonzero(np.repeat(whole, cache.layout.block_rows)[: cache.rows])
            for hashes, lookups in ((cache.text_hashes, self._by_text), (cache.token_hashes, self._by_tokens)):
                lookups.append(RowIndex(hashes))
                lookups[-1].add(rows)

    def by_text(self, text_hashes: Hashes) -> RowLocations:
        """Find rows by the hashes of their texts, (rows, 16) uint8."""
        return _find(self._by_text, text_hashes)

    def by_tokens(self, token_hashes: Hashes) -> RowLocations:
        """Find rows by the hashes of their token sequences, (rows, 16) uint8."""
        return _find(self._by_tokens, token_hashes)


def require_reusable(cache: Cache, identity: Identity, storage: str, *, advice: str) -> None:
    """Refuse a cache whose rows are not those that would be encoded here, with advice on what to do about it.

    Raises:
        IdentityError: it is of something else, lacks a feature, or stores less exactly.
    """
    ours = dataclasses.replace(identity, features=cache.identity.features)
    found = differences(cache.identity, ours, our_name=str(cache.path), their_name="this run")
    lacking = [name for name in identity.features if name not in cache.identity.features]
    if lacking:
        found.append(f"features ({cache.path} lacks {', '.join(lacking)})")
    if cache.layout.storage not in (storage, "float32"):
        found.append(f"storage ({cache.path}: {cache.layout.storage}, this run: {storage})")
    if found:
        raise IdentityError(f"{cache.path} cannot be reused here: they differ in {'; '.join(found)}; {advice}")


def _find(lookups: Sequence[RowIndex], hashes: Hashes) -> RowLocations:
    places = RowLocations(np.full(len(hashes), -1, np.int64), np.zeros(len(hashes), np.int64))
    for number, lookup in enumerate(lookups):
        asked = np.flatnonzero(~places.found)
        rows = lookup.find(hashes[asked])
        there = asked[rows >= 0]
        places.donors[there], places.rows[there] = number, rows[rows >= 0]
    return places
