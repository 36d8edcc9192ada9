"""Which rows a head is trained on, chosen by and tested on: shares of one cache, or the rows of other caches."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...cache.errors import IdentityError, SettingsError, TableError
from ...cache.hashing import hash_keys
from ...cache.identity import MODEL, differences
from ...cache.label_kind import LabelKind
from ...cache.reader import Cache, open_cache
from ...cache.reader import Labels as CachedLabels
from ..heads.dataset import Dataset, Origin, Splits
from ..heads.dims import Dims
from ..progress import Note, Report, Step
from ..settings import TASKS, Labels, Solver, Task, TrainSettings
from ..types import Indices, Mask
from .relabel import UNLABELLED, is_labelled, relabel
from .stratify import (
    assign_folds,
    choosing_folds,
    group_rows,
    hold_out,
    require_trainable,
    require_variety,
    strata_of,
)
from .tasks import for_task


def open_caches(
    train: str | os.PathLike[str],
    *,
    validation: str | os.PathLike[str] | None,
    test: str | os.PathLike[str] | None,
    settings: TrainSettings,
    labels: Labels | None,
    report: Report,
) -> tuple[Cache, Cache | None, Cache | None]:
    """Open the training, validation and test caches, verify the checksums of all rows, and replace labels if asked to.

    Raises:
        SettingsError: ``folds`` and a validation cache both choose the validation rows.
        DamagedError: a checksum does not match.
    """
    if settings.folds and validation is not None:
        raise SettingsError("`folds` and `validation` both say which rows to choose by; choose one of them")

    @functools.cache  # a path may be given twice
    def opened(path: str) -> Cache:
        cache = open_cache(path)
        cache.check(lambda block: report(Step("checking", block + 1, cache.layout.blocks, "blocks")))
        relabelled = (
            cache if labels is None else relabel(cache, labels, report, task=settings.task, order=settings.order)
        )
        return for_task(relabelled, settings.task, settings.order)

    train_cache = opened(str(train))
    task = TASKS[train_cache.label_kind or LabelKind.CLASS]
    order = train_cache.label_names if task is Task.ORDINAL else None
    others = [None if path is None else for_task(opened(str(path)), task, order) for path in (validation, test)]
    return train_cache, others[0], others[1]


def require_unchanged(caches: Iterable[Cache | None]) -> None:
    """Refuse what was made of caches that were written over meanwhile.

    Raises:
        DamagedError: one of them was.
    """
    for cache in caches:
        if cache is not None:
            cache.require_unchanged()


def divide_features(
    cache: Cache,
    validation: Cache | None,
    test: Cache | None,
    *,
    settings: TrainSettings,
    validated: bool = True,
    ranked: bool = False,
    report: Report,
) -> dict[str, Splits]:
    """Divide the rows as `divide` does, with each feature that a head may be trained on: those that a search chooses
    from, else one. On ties, the first is to be chosen.

    Raises:
        As `divide`.
    """
    caches = [cache, *(other for other in (validation, test) if other is not None)]
    names = features_of(cache, settings)
    held = [name for name in names if all(name in other.identity.features for other in caches)] or names
    if len(held) < len(names):
        report(Note(f"only {', '.join(held)} can be chosen: the other caches hold no other features of {cache.path}"))
    first, *others = held
    options: dict[str, Any] = {"validated": validated, "ranked": ranked}
    splits = divide(
        *(cache, validation, test), settings=dataclasses.replace(settings, feature=first), report=report, **options
    )
    by_feature = {first: splits}
    for name in others:
        dims = find_dims(cache, dataclasses.replace(settings, feature=name))
        parts = {}
        for part, origin in (("train", cache), ("validation", validation or cache), ("test", test or cache)):
            require_fit(origin, cache, name)
            parts[part] = dataclasses.replace(getattr(splits, part), features=origin.features(name), dims=dims)
        by_feature[name] = dataclasses.replace(splits, **parts)
    return by_feature


def features_of(cache: Cache, settings: TrainSettings) -> list[str]:
    """The features of a cache that a head may be trained on: one, unless a search chooses."""
    if not settings.chooses_feature:
        return [cache.feature_name(settings.feature)]
    return sorted(cache.identity.features, key=lambda name: (name != MODEL, name))


def require_fit(other: Cache, cache: Cache, feature: str) -> None:
    """Refuse another cache whose vectors of a feature mean something else.

    Raises:
        IdentityError: it comes from another encoder or other settings.
    """
    ours, theirs = (one.identity.narrowed(feature) for one in (cache, other))  # it may hold more features
    if clauses := differences(ours, theirs, our_name=str(cache.path), their_name=str(other.path)):
        why = f"they differ in {'; '.join(clauses)}; extract one of them again"
        raise IdentityError(f"{other.path} does not fit {cache.path}: {why}")


def divide(
    cache: Cache,
    validation: Cache | None,
    test: Cache | None,
    *,
    settings: TrainSettings,
    validated: bool = True,
    ranked: bool = False,
    report: Report,
) -> Splits:
    """Divide a cache's rows into training, validation and test rows, or take the latter two from other caches.

    Rows with one token sequence stay together. The division is stratified as `strata_of` says, and fixed by
    ``split_seed``. If a class has too few texts for all folds, it is trained on in each, and a note says in how many it
    is validated. If ``validated`` is False, there may be no validation rows.

    A search chooses by folds of the training rows, so no validation rows are held out for it; unless ``ranked`` is
    True: heads of all solvers are to be compared on the same rows.

    Raises:
        IdentityError: another cache comes from another encoder or other settings.
        TableError: a cache has no labels, a class cannot be divided, or the training rows lack a class of another
            cache.
        UserError: a cache does not hold the feature.
    """
    (values, names), feature = _labels(cache), cache.feature_name(settings.feature)
    groups = group_rows(cache.token_hashes)
    rows = np.flatnonzero(is_labelled(values))
    searches = settings.solver is Solver.AUTO
    validated = ranked or (validated if not searches else validation is not None)
    divided = not searches and (validation is None or test is None)
    labels, classes = strata_of(values), names if _are_classes(values) else ()
    if classes:
        require_trainable(labels[rows], groups[rows], names, str(cache.path), divided=divided)
    shared = _shared_with(cache, [other for other in (validation, test) if other is not None])
    if shared.any():
        consequence = "kept, as told" if settings.keep_shared else "left out of training"
        texts = f"{int(shared.sum()):,} training rows have texts that are also validated or tested on"
        report(Note(f"{texts}: {consequence}"))
    if not settings.keep_shared:
        rows = rows[~shared[rows]]
    rng = np.random.default_rng(settings.split_seed)
    options: dict[str, Any] = {"rng": rng, "names": classes, "where": str(cache.path), "report": report}
    rows, validation_rows, test_rows = _hold_out_rows(
        rows,
        labels,
        groups,
        tested=test is None,
        validated=validation is None and (ranked or not searches),
        settings=settings,
        **options,
    )
    own = Dataset(
        features=cache.features(feature),
        labels=values,
        index=rows,
        dims=find_dims(cache, settings),
        origin=_origin(cache),
    )

    def held_out(own_rows: Indices, other: Cache | None) -> tuple[Dataset, Indices]:
        """Return the rows of a split, and the text of each row of its cache as a number."""
        if other is None:
            return dataclasses.replace(own, index=own_rows), groups
        require_fit(other, cache, feature)
        other_labels, _ = _labels(other, names)
        index = np.flatnonzero(is_labelled(other_labels))
        dataset = Dataset(
            features=other.features(feature),
            labels=other_labels,
            index=index,
            dims=own.dims,
            origin=_origin(other),
        )
        return dataset, group_rows(other.token_hashes)

    (validation_split, validation_groups), (test_split, test_groups) = (
        held_out(own_rows, other) for own_rows, other in ((validation_rows, validation), (test_rows, test))
    )
    if test is not None:
        # A row that chooses the epoch must not test it.
        tested = _shared_with(validation or cache, [test])[validation_split.index]
        if tested.any():
            consequence = "kept, as told" if settings.keep_shared else "left out of validation"
            report(Note(f"{int(tested.sum()):,} validation rows have texts that are also tested on: {consequence}"))
        if not settings.keep_shared:
            validation_split = dataclasses.replace(validation_split, index=validation_split.index[~tested])
    _require_rows(cache, own, validation_split, test_split, names=names, validated=validated, shared=bool(shared.any()))
    fold = None
    if searches and validation is None:
        given = 0 if ranked else settings.folds  # in a sweep, ``folds`` are those that rank
        fold = _fold_to_choose_by(rows, labels, groups, folds=given, **options)
    elif not len(validation_split):
        report(Note(f"{cache.path} leaves no rows for `validation`; the head is trained without, and not validated"))
    return Splits(
        train=own,
        validation=validation_split,
        test=test_split,
        train_groups=groups[rows],
        validation_groups=validation_groups[validation_split.index],
        test_groups=test_groups[test_split.index],
        shared_rows=int(shared.sum()),
        fold=fold,
    )


def _are_classes(values: CachedLabels) -> bool:
    """Whether each row has one of several classes, so that the strata are these classes."""
    return values.dtype == np.int64


def _origin(cache: Cache) -> Origin:
    return Origin(text_hashes=cache.text_hashes, row_numbers=cache.row_numbers)


def _hold_out_rows(
    rows: Indices,
    labels: Indices,
    groups: Indices,
    *,
    tested: bool,
    validated: bool,
    settings: TrainSettings,
    rng: np.random.Generator,
    names: tuple[str, ...],
    where: str,
    report: Report,
) -> tuple[Indices, Indices, Indices]:
    """Hold out rows to test on and rows to validate on, if told; returns training, validation and test rows."""
    test_rows = validation_rows = rows[:0]
    if tested:
        rows, test_rows = hold_out(rows, labels, groups, fraction=settings.test_fraction, rng=rng)
    if validated and settings.folds:
        fold = assign_folds(rows, labels, groups, folds=settings.folds, rng=rng, where=where)
        _note_rare_labels(labels[rows], fold, names, settings.folds, where, report)
        rows, validation_rows = rows[fold != settings.fold], rows[fold == settings.fold]
    elif validated:
        rows, validation_rows = hold_out(rows, labels, groups, fraction=settings.validation_fraction, rng=rng)
    return rows, validation_rows, test_rows


def _require_rows(
    cache: Cache,
    train: Dataset,
    validation: Dataset,
    test: Dataset,
    *,
    names: tuple[str, ...],
    validated: bool,
    shared: bool,
) -> None:
    """Refuse parts that lack rows.

    Raises:
        TableError: a label has no training rows; there are no test rows; or there are no validation rows, and
            ``validated`` is True.
    """
    if not _are_classes(train.targets):
        require_variety(train.targets, names, str(cache.path))
        absent = train.index[:0]
    else:
        absent = np.flatnonzero(np.bincount(train.targets, minlength=len(names)) == 0)
    if len(absent):
        label = f" of the label {names[int(absent[0])]!r}" if len(train) else ""
        why = "the others are tested or validated on; `keep_shared=True` keeps them" if shared else "add more"
        raise TableError(f"{cache.path}: no rows{label} are left to train on: {why}")
    for split, setting in ((validation, "`validation`"), (test, "`test`")):
        if not len(split) and (validated or setting == "`test`"):
            needed = "three distinct texts to be trained on, validated and tested"
            needed = needed if validated else "two distinct texts to be trained on and tested"
            raise TableError(
                f"{cache.path} leaves no rows for {setting}: a label needs {needed}; add texts, or give a cache of "
                f"other rows with {setting}"
            )


def _fold_to_choose_by(
    rows: Indices,
    labels: Indices,
    groups: Indices,
    *,
    folds: int,
    rng: np.random.Generator,
    names: tuple[str, ...],
    where: str,
    report: Report,
) -> Indices:
    """The folds of the training rows by which a search chooses: as many as given, or as `choosing_folds` says."""
    if folds:
        fold = assign_folds(rows, labels, groups, folds=folds, rng=rng, where=where)
        _note_rare_labels(labels[rows], fold, names, folds, where, report)
        return fold
    fold = choosing_folds(rows, labels, groups, rng=rng)
    if not names:
        return fold
    chosen_by = np.bincount(labels[rows[fold > 0]], minlength=len(names))
    if len(single := np.flatnonzero((chosen_by == 0) & (np.bincount(labels[rows], minlength=len(names)) > 0))):
        shown = ", ".join(repr(names[label]) for label in single[:5].tolist())
        more = f" and {len(single) - 5:,} others" if len(single) > 5 else ""
        report(Note(f"{where}: labels with one text to train on have none to choose a head by: {shown}{more}"))
    return fold


def find_dims(cache: Cache, settings: TrainSettings) -> Dims | None:
    """The part of a cache's vectors that is trained on; None for all of it.

    Raises:
        SettingsError: the feature has fewer numbers.
    """
    feature, dims = cache.feature_name(settings.feature), settings.dims
    width = int(cache.features(feature).shape[1])
    if dims is not None and dims > width:
        raise SettingsError(f"`dims` is {dims}; the feature {feature!r} of {cache.path} has {width} numbers")
    if dims is None or dims == width:
        return None
    return Dims(dims=dims, of=width, normalized=cache.identity.narrowed(feature).normalized)


def _note_rare_labels(
    labels: Indices, fold: Indices, names: tuple[str, ...], folds: int, where: str, report: Report
) -> None:
    """Report the classes that are absent from the validation rows of some folds; ``names`` are none where strata are no
    classes."""
    if not names:
        return
    pairs = np.unique(np.stack([labels, fold])[:, fold > 0], axis=1)
    counts = np.bincount(pairs[0], minlength=len(names))
    rare = np.flatnonzero((counts < folds) & (np.bincount(labels, minlength=len(names)) > 0))
    if len(rare):
        shown = ", ".join(f"{names[label]!r} ({counts[label]} of {folds})" for label in rare[:5].tolist())
        more = f" and {len(rare) - 5:,} others" if len(rare) > 5 else ""
        what = "labels with too few texts are validated in some folds only, and trained on in each"
        report(Note(f"{where}: {what}: {shown}{more}; add texts, or use fewer `folds`"))


def _labels(cache: Cache, names: tuple[str, ...] | None = None) -> tuple[CachedLabels, tuple[str, ...]]:
    """A cache's labels, with classes as indices into these names or its own, and the names; numbers have none. Each
    table numbers its classes in its own way, so classes are matched by name."""
    labels = cache.labels
    assert labels is not None  # `for_task` has refused a cache without
    if cache.label_names is None:
        return np.asarray(labels, np.float64), ()
    names = names or cache.label_names
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := [name for name in cache.label_names if name not in numbers]:
        raise TableError(
            f"{cache.path} has the label {unknown[0]!r}, which the training rows have not ({', '.join(names[:5])}); "
            "correct the label, or train on rows that have it"
        )
    order = [numbers[name] for name in cache.label_names]
    if labels.ndim == 2:
        matched = np.where(is_labelled(labels)[:, None], np.zeros((len(labels), len(names)), np.uint8), labels[:, :1])
        matched[:, order] = labels
        return matched, names
    return np.append(np.array(order, np.int64), UNLABELLED)[labels], names


def _shared_with(cache: Cache, others: list[Cache]) -> Mask:
    """(rows,) bool: which rows have a token sequence that another cache holds as well."""
    shared = np.zeros(cache.rows, bool)
    for other in others:
        shared |= np.isin(hash_keys(cache.token_hashes), hash_keys(other.token_hashes))
    return shared
