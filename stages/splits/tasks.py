"""What the labels of a cache are for: the task that they say, or another one that they can be read for."""

from __future__ import annotations

import numpy as np

from ...cache.errors import TableError
from ...cache.label_kind import LabelKind
from ...cache.reader import Cache, Labels
from ..settings import TASKS, Task
from ..units import number_name, number_of
from .relabel import UNLABELLED, is_labelled

KINDS = {task: kind for kind, task in TASKS.items()}
"""The kind of labels that each task needs."""


def for_task(cache: Cache, task: Task, order: tuple[str, ...] | None) -> Cache:
    """Read the labels of a cache for a task, where they are of another kind. Nothing is read from a table again.

    Numbers become classes named as they are, and classes whose names are numbers become these numbers, or classes in
    the order of these numbers; or in the order that is given.

    Returns:
        The cache, with labels of the kind that the task needs; with `Task.AUTO` the cache as it is.

    Raises:
        TableError: the cache has no labels, or they cannot be read so.
    """
    labels, names, kind, where = cache.labels, cache.label_names, cache.label_kind, str(cache.path)
    if labels is None or kind is None:
        raise TableError(
            f"{where} has no labels; name a table of them with `labels`; or extract one with a label column"
        )
    wanted = kind if task is Task.AUTO else KINDS[task]
    if kind is wanted and (order is None or order == names):
        return cache
    if LabelKind.MULTI_LABEL in (kind, wanted):
        what = "any number of labels" if kind is LabelKind.MULTI_LABEL else "one label"
        raise TableError(f"{where}: a row has {what}, which is not for `task={task}`; leave it out, or extract again")
    if names is None:  # numbers
        labels, names = _as_classes(labels, where, whole=wanted is LabelKind.CLASS)
    if wanted is LabelKind.NUMBER:
        values = np.array([*_numbers(names, where, "choose another `task`"), np.nan])
        return cache.with_labels(values[labels], None, wanted)
    if wanted is LabelKind.ORDINAL:
        ranked = order or tuple(
            name for _, name in sorted(zip(_numbers(names, where, "name their `order`"), names, strict=True))
        )
        if absent := [name for name in names if name not in ranked]:
            raise TableError(f"{where} has the label {absent[0]!r}, which is not in the `order` ({', '.join(ranked)})")
        ranks = np.array([*(ranked.index(name) for name in names), UNLABELLED], np.int64)
        labels, names = ranks[labels], ranked
    return cache.with_labels(labels, names, wanted)


def _as_classes(numbers: Labels, where: str, *, whole: bool) -> tuple[Labels, tuple[str, ...]]:
    """Return numbers as class numbers, (rows,) int64, and the classes' names."""
    labelled = is_labelled(numbers)
    distinct, classes = np.unique(numbers[labelled], return_inverse=True)
    if whole and (fractions := distinct[distinct % 1 != 0]).size:
        raise TableError(
            f"{where} has numbers such as {fractions[0]:g}, which are no classes; extract with `task=classes`"
        )
    labels = np.full(len(numbers), UNLABELLED, np.int64)
    labels[labelled] = classes
    return labels, tuple(map(number_name, distinct.tolist()))


def _numbers(names: tuple[str, ...], where: str, advice: str) -> list[float]:
    """Return the numbers that the classes' names are; ``advice`` ends the message where one is none."""
    numbers = [number for name in names if (number := number_of(name)) is not None]
    if len(numbers) < len(names):
        text = next(name for name in names if number_of(name) is None)
        raise TableError(f"{where} has the label {text!r}, which is no number; {advice}")
    return numbers
