"""Dividing rows into training, validation and test, so that no text stands on two sides. Plain arrays only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..cache.errors import TableError
from ..cache.hashing import Hashes, hash_keys

Indices = npt.NDArray[np.int64]


def group_rows(token_hashes: Hashes) -> Indices:
    """Number the distinct token sequences: (rows,) int64, equal for rows that the encoder cannot tell apart."""
    _, groups = np.unique(hash_keys(token_hashes), return_inverse=True)
    return groups.reshape(-1).astype(np.int64)


def hold_out(
    rows: Indices, labels: Indices, groups: Indices, *, fraction: float, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Hold out a share of every class, whole groups at a time.

    A group whose rows bear several labels counts as of the rarest of them. Each class with two groups or more keeps
    at least one, and gives at least one; a class with one group keeps it.

    Args:
        rows: (n,) int64, the rows to divide.
        labels: (all rows,) int64.
        groups: (all rows,) int64, from `group_rows`.
        fraction: Share of the rows to hold out.
        rng: Decides which.

    Returns:
        The rows that are kept and those that are held out, each in ascending order.
    """
    distinct, inverse, sizes = np.unique(groups[rows], return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    rarity = np.bincount(labels[rows])[labels[rows]]
    order = np.lexsort((rarity, inverse))
    group_class = labels[rows][order[np.searchsorted(inverse[order], np.arange(len(distinct)))]]
    held = np.zeros(len(distinct), bool)
    for label in np.unique(group_class):
        members = rng.permutation(np.flatnonzero(group_class == label))
        chosen = _fill(sizes[members], fraction * sizes[members].sum())
        held[members[chosen]] = True
    out = held[inverse]
    return np.sort(rows[~out]), np.sort(rows[out])


def _fill(sizes: Indices, wanted: float) -> list[int]:
    """Choose groups in their order, passing over those too large, until the wanted rows are reached; never all."""
    chosen: list[int] = []
    rows = 0
    for number, size in enumerate(sizes.tolist()):
        if rows + size <= wanted + 0.5 and len(chosen) < len(sizes) - 1:
            chosen.append(number)
            rows += size
    return chosen or ([int(sizes.argmin())] if len(sizes) > 1 else [])


def require_trainable(
    labels: Indices, groups: Indices, names: tuple[str, ...], where: str, *, divided: bool = True
) -> None:
    """Refuse labels that cannot be trained on, or that cannot be divided where they are to be.

    Raises:
        TableError: there is one class only, or a class has a single distinct text.
    """
    pairs = np.unique(np.stack([labels, groups]), axis=1)
    counts = np.bincount(pairs[0], minlength=len(names))
    if (counts > 0).sum() < 2:
        raise TableError(f"{where} has rows of one class only ({names[int(counts.argmax())]!r}); a head needs two")
    lonely = [names[label] for label in np.flatnonzero(counts == 1)]
    if lonely and divided:
        shown = ", ".join(map(repr, lonely[:5])) + (" and others" if len(lonely) > 5 else "")
        raise TableError(
            f"{where}: the label {shown} has one distinct text only, which cannot be both trained on and tested; "
            "give it more rows, remove it, or bring the parts as files with --test and --validation"
        )
