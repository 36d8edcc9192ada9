"""Which rows a head trains on, is chosen by and is tested on: split off one cache, or brought as others."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from ...cache.errors import IdentityError, TableError
from ...cache.identity import differences
from ...cache.reader import Cache
from ..heads.dataset import Dataset
from ..progress import Note, Report
from ..settings import TrainSettings
from .relabel import UNLABELLED
from .stratify import assign_folds, group_rows, hold_out, require_trainable

Indices = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """Training, validation and test rows, in the class numbers of the training cache.

    Attributes:
        train, validation, test: The rows.
        validation_groups, test_groups: (rows of the part,) int64, equal for rows with the same token sequence.
        shared_rows: Training rows that the validation or test cache has too: left out, or kept where told so.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    validation_groups: Indices
    test_groups: Indices
    shared_rows: int


def divide(
    cache: Cache, *, validation: Cache | None, test: Cache | None, settings: TrainSettings, report: Report
) -> Splits:
    """Divide the rows: those of one cache by distinct texts, stratified and seeded; or take other caches as parts.

    Raises:
        IdentityError: another cache is of another encoder or other settings.
        TableError: a cache has no labels, a class cannot be divided, or a cache has a class that training has not.
        UserError: a cache lacks the feature.
    """
    names = _label_names(cache)
    labels = _labels(cache, names)
    groups = group_rows(cache.token_hashes)
    rows = np.flatnonzero(labels >= 0)  # a row that `labels` does not name has none
    require_trainable(labels[rows], groups[rows], names, str(cache.path), divided=validation is None or test is None)
    shared = _shared_with(cache, [other for other in (validation, test) if other is not None])
    if shared.any():
        told = "kept, as told" if settings.keep_shared else "left out of training"
        report(Note(f"{int(shared.sum()):,} training rows have texts that are also validated or tested on: {told}"))
    if not settings.keep_shared:
        rows = rows[~shared[rows]]
    rng = np.random.default_rng(settings.split_seed)
    test_rows = validation_rows = rows[:0]
    if test is None:
        rows, test_rows = hold_out(rows, labels, groups, fraction=settings.test_fraction, rng=rng)
    if validation is None and settings.folds:
        fold = assign_folds(rows, labels, groups, folds=settings.folds, rng=rng)
        rows, validation_rows = rows[fold != settings.fold], rows[fold == settings.fold]
    elif validation is None:
        rows, validation_rows = hold_out(rows, labels, groups, fraction=settings.validation_fraction, rng=rng)
    validation_part = _part(cache, validation_rows, labels, validation, names, settings)
    validation_groups = _groups(groups, validation, validation_part)
    if test is not None:
        # Rows that choose the epoch must not be those that test it.
        tested = _shared_with(validation or cache, [test])[validation_part.index]
        if tested.any():
            told = "kept, as told" if settings.keep_shared else "left out of validation"
            report(Note(f"{int(tested.sum()):,} validation rows have texts that are also tested on: {told}"))
        if not settings.keep_shared:
            validation_groups = validation_groups[~tested]
            validation_part = dataclasses.replace(validation_part, index=validation_part.index[~tested])
    test_part = _part(cache, test_rows, labels, test, names, settings)
    parts = Splits(
        train=Dataset(features=cache.features(settings.feature), labels=labels, index=rows),
        validation=validation_part,
        test=test_part,
        validation_groups=validation_groups,
        test_groups=_groups(groups, test, test_part),
        shared_rows=int(shared.sum()),
    )
    absent = np.flatnonzero(np.bincount(labels[rows], minlength=len(names)) == 0)
    if not len(rows) or len(absent):
        name = f" of the label {names[int(absent[0])]!r}" if len(rows) else ""
        why = (
            "the rest is tested or validated on; `keep_shared=True` keeps it" if shared.any() else "bring more of them"
        )
        raise TableError(f"{cache.path}: no rows{name} are left to train on: {why}")
    for part, option in ((parts.validation, "`validation`"), (parts.test, "`test`")):
        if not len(part):
            raise TableError(f"{cache.path} leaves no rows for {option}; bring others as a cache with {option}")
    return parts


def _part(
    cache: Cache,
    rows: Indices,
    labels: Indices,
    other: Cache | None,
    names: tuple[str, ...],
    settings: TrainSettings,
) -> Dataset:
    if other is None:
        return Dataset(features=cache.features(settings.feature), labels=labels, index=rows)
    clauses = differences(
        cache.identity.narrowed(settings.feature),
        dataclasses.replace(other.identity, features=(settings.feature,)),
        our_name=str(cache.path),
        their_name=str(other.path),
    )
    if clauses:
        raise IdentityError(
            f"{other.path} does not fit {cache.path}: they differ in {'; '.join(clauses)}; extract one of them again"
        )
    features, other_labels = other.features(settings.feature), _labels(other, names)
    return Dataset(features=features, labels=other_labels, index=np.flatnonzero(other_labels >= 0))


def _groups(groups: Indices, other: Cache | None, part: Dataset) -> Indices:
    return (groups if other is None else group_rows(other.token_hashes))[part.index]


def _label_names(cache: Cache) -> tuple[str, ...]:
    if cache.label_names is None:
        raise TableError(f"{cache.path} has no labels; extract it from a table with a label column")
    return cache.label_names


def _labels(cache: Cache, names: tuple[str, ...]) -> Indices:
    """A cache's labels in these names' numbers: classes are matched by name, since each table numbers its own."""
    own = _label_names(cache)
    strangers = [name for name in own if name not in set(names)]
    if strangers:
        raise TableError(
            f"{cache.path} has the label {strangers[0]!r}, which the training rows have not ({', '.join(names[:5])}); "
            "correct the label, or train on rows that have it"
        )
    assert cache.labels is not None
    numbers = {name: number for number, name in enumerate(names)}
    found = np.array([numbers[name] for name in own], np.int64)[cache.labels]
    return np.where(cache.labels == UNLABELLED, UNLABELLED, found)


def _shared_with(cache: Cache, others: list[Cache]) -> npt.NDArray[np.bool_]:
    """(rows,) bool: which rows have a token sequence that one of the other caches has too."""
    shared = np.zeros(cache.rows, bool)
    for other in others:
        numbers = group_rows(np.concatenate([cache.token_hashes, other.token_hashes]))
        shared |= np.isin(numbers[: cache.rows], numbers[cache.rows :])
    return shared
