"""Dividing rows into training, validation and test, so that no text stands on two sides. Plain arrays only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...cache.errors import TableError
from ...cache.hashing import Hashes, hash_keys

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
    inverse, sizes, group_class = _class_of_groups(rows, labels, groups)
    held = np.zeros(len(sizes), bool)
    for label in np.unique(group_class):
        members = rng.permutation(np.flatnonzero(group_class == label))
        chosen = _fill(sizes[members], fraction * sizes[members].sum())
        held[members[chosen]] = True
    out = held[inverse]
    return np.sort(rows[~out]), np.sort(rows[out])


def assign_folds(rows: Indices, labels: Indices, groups: Indices, *, folds: int, rng: np.random.Generator) -> Indices:
    """Deal rows out to folds, whole groups at a time, so that every fold has its share of every class.

    The groups of a class, in a random order, go one by one to the fold that has the fewest rows of it so far. Within
    a class, folds differ by no more rows than its largest group has. A class with fewer groups than folds is missing
    from some.

    Args:
        rows: (n,) int64, the rows to divide.
        labels: (all rows,) int64.
        groups: (all rows,) int64, from `group_rows`.
        folds: How many.
        rng: Decides which.

    Returns:
        (n,) int64: each row's fold, from 1.

    Raises:
        TableError: there are fewer groups than folds, or a class has only one.
    """
    inverse, sizes, group_class = _class_of_groups(rows, labels, groups)
    if len(sizes) < folds:
        raise TableError(f"{len(sizes)} distinct texts cannot be divided into {folds} folds; use fewer `folds`")
    fold = np.zeros(len(sizes), np.int64)
    total = np.zeros(folds, np.int64)
    for label in np.unique(group_class):
        members = rng.permutation(np.flatnonzero(group_class == label))
        if len(members) == 1:
            raise TableError("a class has a single distinct text that is not tested on; `folds` need two")
        filled = np.zeros(folds, np.int64)
        for member in members:
            chosen = int(np.lexsort((total, filled))[0])  # the emptiest of this class, then of all
            fold[member] = chosen
            filled[chosen] += sizes[member]
            total[chosen] += sizes[member]
    result: Indices = fold[inverse] + 1
    return result


def _class_of_groups(rows: Indices, labels: Indices, groups: Indices) -> tuple[Indices, Indices, Indices]:
    """Number the groups that these rows are of: each row's, each group's rows, and the rarest class among them."""
    distinct, inverse, sizes = np.unique(groups[rows], return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    rarity = np.bincount(labels[rows])[labels[rows]]
    order = np.lexsort((rarity, inverse))
    group_class = labels[rows][order[np.searchsorted(inverse[order], np.arange(len(distinct)))]]
    return inverse, sizes, group_class


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
            "give it more rows, remove it, or bring the parts as files with `test` and `validation`"
        )
