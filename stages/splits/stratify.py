"""Stratified division of rows, so that no text is on two sides. Plain arrays only."""

from __future__ import annotations

import heapq

import numpy as np

from ...cache.errors import TableError
from ...cache.hashing import Hashes, hash_keys
from ...cache.reader import Labels
from ..types import Indices
from .relabel import UNLABELLED, is_labelled

_MOST_BINS, _BIN_ROWS = 10, 20
"""How numbers are divided into strata."""

CHOOSING_FOLDS = 5
"""Folds to choose a head by."""
_FEW_TEXTS = 20
"""Up to so many distinct texts, each is a fold of its own."""


def group_rows(token_hashes: Hashes) -> Indices:
    """Number the distinct token sequences: (rows,) int64, equal for rows that the encoder cannot tell apart."""
    _, groups = np.unique(hash_keys(token_hashes), return_inverse=True)
    return groups.astype(np.int64)


def strata_of(labels: Labels) -> Indices:
    """The stratum of each row, by which rows are divided: (rows,) int64 from 0; -1 of rows without a label.

    Args:
        labels: Of classes, (rows,) int64: the class. Numbers, (rows,) float64: up to ten bins between quantiles, of at
            least 20 rows. Several labels a row, (rows, classes) uint8: the row's rarest label, as in a greedy form of
            the iterative stratification of Sechidis et al. (2011); rows with none are a stratum of their own.
    """
    labelled = is_labelled(labels)
    strata = np.full(len(labels), UNLABELLED, np.int64)
    if labels.ndim == 2:
        sets = labels[labelled]
        counts = sets.sum(axis=0, dtype=np.int64)
        rarest = np.argsort(counts, kind="stable")  # the columns, the rarest label first
        strata[labelled] = np.where(sets.any(axis=1), rarest[sets[:, rarest].argmax(axis=1)], labels.shape[1])
    elif labels.dtype.kind == "f":
        numbers = labels[labelled]
        bins = min(max(len(numbers) // _BIN_ROWS, 1), _MOST_BINS)
        edges = np.quantile(numbers, np.arange(1, bins) / bins)
        strata[labelled] = np.searchsorted(edges, numbers, side="left")
    else:
        strata[:] = labels
    return strata


def require_variety(labels: Labels, names: tuple[str, ...], where: str) -> None:
    """Refuse training rows with which there is nothing to learn: whose numbers are all equal, or that all have a label,
    or none of which has it.

    Args:
        labels: (rows,) float64, or (rows, classes) uint8.
        names: The classes.
        where: The rows' name in a message.
    """
    if not len(labels):
        raise TableError(f"{where}: no rows are left to train on; add more")
    if labels.ndim == 1 and labels.min() == labels.max():
        raise TableError(f"{where}: all labels that are left to train on are {labels[0]:g}; there is nothing to learn")
    for what, wrong in (("no rows", ~labels.any(axis=0)), ("all rows", labels.all(axis=0))):
        if labels.ndim == 2 and wrong.any():
            name = names[int(np.argmax(wrong))]
            raise TableError(
                f"{where}: {what} that are left to train on have the label {name!r}; remove it, or add other rows"
            )


def hold_out(
    rows: Indices, labels: Indices, groups: Indices, *, fraction: float, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Hold out a share of every class, whole groups at a time.

    A group with several labels counts for the rarest of them. A class with at least two groups keeps at least one
    group and gives at least one; a class with a single group keeps it.

    Args:
        rows: (n,) int64, the rows to divide.
        labels: (all rows,) int64.
        groups: (all rows,) int64, from `group_rows`.
        fraction: Share of the rows to hold out.
        rng: Decides which groups.

    Returns:
        The rows that are kept and the rows that are held out, both ascending.
    """
    row_group, sizes, group_class = _group_classes(rows, labels, groups)
    held = np.zeros(len(sizes), bool)
    for label in np.unique(group_class):
        members = rng.permutation(np.flatnonzero(group_class == label))
        chosen = _choose_groups(sizes[members], fraction * sizes[members].sum())
        held[members[chosen]] = True
    out = held[row_group]
    return np.sort(rows[~out]), np.sort(rows[out])


def assign_folds(
    rows: Indices, labels: Indices, groups: Indices, *, folds: int, rng: np.random.Generator, where: str = "the rows"
) -> Indices:
    """Assign rows to folds, whole groups at a time, so that every fold has its share of every class.

    The groups of a class, in random order, go one by one to the fold that has the fewest rows of the class so far. So
    the folds' numbers of rows of a class differ by no more than the size of its largest group. A class with fewer
    groups than folds is absent from some folds. A class with a single group is in none: it is always trained on.

    Args:
        rows, labels, groups, rng: As for `hold_out`.
        folds: Number of folds.
        where: The rows' name in a message.

    Returns:
        (n,) int64: each row's fold, from 1; 0 for rows that are in no fold.

    Raises:
        TableError: there are fewer groups than folds.
    """
    row_group, sizes, group_class = _group_classes(rows, labels, groups)
    if len(sizes) < folds:
        raise TableError(
            f"{where}: {len(sizes)} distinct texts cannot be divided into {folds} folds; use fewer `folds`"
        )
    fold = np.full(len(sizes), -1)
    fold_rows = [0] * folds
    for label in np.unique(group_class):
        members = rng.permutation(np.flatnonzero(group_class == label))
        if len(members) == 1:
            continue
        emptiest = [(0, rows_of, number) for number, rows_of in enumerate(fold_rows)]
        heapq.heapify(emptiest)  # fewest rows of the class first, then of all classes
        for member, size in zip(members.tolist(), sizes[members].tolist(), strict=True):
            class_rows, of_all, chosen = emptiest[0]
            fold[member] = chosen
            fold_rows[chosen] = of_all + size
            heapq.heapreplace(emptiest, (class_rows + size, of_all + size, chosen))
    result: Indices = fold[row_group] + 1
    return result


def choosing_folds(rows: Indices, labels: Indices, groups: Indices, *, rng: np.random.Generator) -> Indices:
    """Assign rows to folds as `assign_folds` does, in as many folds as serve to choose a head by: `CHOOSING_FOLDS`; one
    for each text if there are few; none, so that all rows have the fold 0, if no class has two texts.

    A class with a single text is trained on in each fold, so few rows are no error.
    """
    _, _, group_class = _group_classes(rows, labels, groups)
    counts = np.bincount(group_class)
    dividable = int(counts[counts > 1].sum())
    if not dividable:
        return np.zeros(len(rows), np.int64)
    folds = dividable if dividable <= _FEW_TEXTS else CHOOSING_FOLDS
    return assign_folds(rows, labels, groups, folds=folds, rng=rng)


def _group_classes(rows: Indices, labels: Indices, groups: Indices) -> tuple[Indices, Indices, Indices]:
    """Each row's group (renumbered from 0), each group's number of rows, and each group's rarest class."""
    distinct, row_group, sizes = np.unique(groups[rows], return_inverse=True, return_counts=True)
    class_rows = np.bincount(labels[rows])[labels[rows]]
    order = np.lexsort((class_rows, row_group))
    group_class = labels[rows][order[np.searchsorted(row_group[order], np.arange(len(distinct)))]]
    return row_group, sizes, group_class


def _choose_groups(sizes: Indices, wanted_rows: float) -> list[int]:
    """Choose groups in their order until they have the wanted rows. Groups that are too large are skipped; one group
    is always left over."""
    chosen: list[int] = []
    rows = 0
    for number, size in enumerate(sizes.tolist()):
        if rows + size <= wanted_rows + 0.5 and len(chosen) < len(sizes) - 1:
            chosen.append(number)
            rows += size
    return chosen or ([int(sizes.argmin())] if len(sizes) > 1 else [])


def require_trainable(
    labels: Indices, groups: Indices, names: tuple[str, ...], where: str, *, divided: bool = True
) -> None:
    """Refuse labels that no head can be trained on, or that cannot be divided where that is needed.

    Raises:
        TableError: only one class has rows; or, if ``divided``, a class has a single distinct text.
    """
    pairs = np.unique(np.stack([labels, groups]), axis=1)
    counts = np.bincount(pairs[0], minlength=len(names))
    if (counts > 0).sum() < 2:
        raise TableError(f"{where} has rows of one class only ({names[int(counts.argmax())]!r}); a head needs two")
    single = [names[label] for label in np.flatnonzero(counts == 1)]
    if single and divided:
        shown = ", ".join(map(repr, single[:5])) + (" and others" if len(single) > 5 else "")
        raise TableError(
            f"{where}: the label {shown} has one distinct text only, which cannot be both trained on and tested; "
            "give it more rows, remove it, or give caches of other rows with `test` and `validation`"
        )
