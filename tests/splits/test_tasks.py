"""Labels of a cache, read for another task than they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extracting import run
from headstart.cache.errors import TableError
from headstart.cache.label_kind import LabelKind
from headstart.cache.reader import Cache
from headstart.stages.settings import Task
from headstart.stages.splits.tasks import for_task


def cache_of(labels: list[Any], folder: Path, tiny: Path, **options: Any) -> Cache:
    texts = [f"good film {number}" for number in range(len(labels))]
    return run({"text": texts, "label": labels}, folder / "c.h5", tiny, overwrite=True, **options)[0]


def read(cache: Cache, task: Task, order: tuple[str, ...] | None = None) -> list[Any]:
    found = for_task(cache, task, order)
    assert found.labels is not None
    if found.label_names is None:
        assert found.label_kind is LabelKind.NUMBER
        return list(found.labels.tolist())
    assert found.label_kind in (LabelKind.CLASS, LabelKind.ORDINAL)
    assert (found.label_kind is LabelKind.ORDINAL) == (task is Task.ORDINAL)
    return [found.label_names, *found.labels.tolist()]


def test_classes_that_are_numbers_are_numbers_or_ordered(tiny: Path, tmp_path: Path) -> None:
    cache = cache_of([10, 2, -1, 2], tmp_path, tiny)
    assert for_task(cache, Task.AUTO, None) is cache is for_task(cache, Task.CLASSES, None)
    assert read(cache, Task.REGRESSION) == [10.0, 2.0, -1.0, 2.0]
    assert read(cache, Task.ORDINAL) == [("-1", "2", "10"), 2, 1, 0, 1]
    assert read(cache, Task.ORDINAL, ("10", "2", "-1")) == [("10", "2", "-1"), 0, 1, 2, 1]
    assert cache.labels is not None and cache.labels.tolist() == [2, 1, 0, 1]


def test_numbers_are_classes_if_they_are_whole(tiny: Path, tmp_path: Path) -> None:
    cache = cache_of([3.0, 1.0, 3.0], tmp_path, tiny, task="regression")
    assert read(cache, Task.CLASSES) == [("1", "3"), 1, 0, 1]
    halves = cache_of([1.5, 1.0, 3.0], tmp_path, tiny)
    assert read(halves, Task.ORDINAL) == [("1", "1.5", "3"), 1, 0, 2]
    with pytest.raises(
        TableError, match=r"has numbers such as 1\.5, which are no classes; extract with `task=classes`"
    ):
        for_task(halves, Task.CLASSES, None)


def test_names_need_an_order(tiny: Path, tmp_path: Path) -> None:
    cache = cache_of(["low", "high", "low"], tmp_path, tiny)
    assert read(cache, Task.ORDINAL, ("low", "mid", "high")) == [("low", "mid", "high"), 0, 2, 0]
    ordinal = cache_of(["low", "high", "low"], tmp_path, tiny, task="ordinal", order=("low", "high"))
    assert for_task(ordinal, Task.AUTO, None) is ordinal and read(ordinal, Task.CLASSES) == [("low", "high"), 0, 1, 0]
    for task in (Task.ORDINAL, Task.REGRESSION):
        with pytest.raises(TableError, match="has the label 'high', which is no number"):
            for_task(cache, task, None)
    with pytest.raises(TableError, match="has the label 'high', which is not in the `order`"):
        for_task(cache, Task.ORDINAL, ("low", "mid"))


def test_several_labels_are_for_nothing_else(tiny: Path, tmp_path: Path) -> None:
    cache = cache_of([["a"], ["a", "b"]], tmp_path, tiny)
    assert for_task(cache, Task.AUTO, None) is cache is for_task(cache, Task.MULTI_LABEL, None)
    for task in (Task.CLASSES, Task.REGRESSION, Task.ORDINAL):
        with pytest.raises(TableError, match=f"a row has any number of labels, which is not for `task={task}`"):
            for_task(cache, task, None)
    with pytest.raises(TableError, match="a row has one label, which is not for `task=multi-label`"):
        for_task(cache_of(["a", "b"], tmp_path, tiny), Task.MULTI_LABEL, None)


def test_rows_without_a_label_keep_none(tiny: Path, tmp_path: Path) -> None:
    cache = cache_of([3, 1, 3], tmp_path, tiny)
    some = cache.with_labels(np.array([1, -1, 0]), ("1", "3"), LabelKind.CLASS)
    np.testing.assert_array_equal(for_task(some, Task.REGRESSION, None).labels, [3.0, np.nan, 1.0])
    assert read(some, Task.ORDINAL, ("3", "1")) == [("3", "1"), 0, -1, 1]
    numbers = cache.with_labels(np.array([1.0, np.nan, 3.0]), None, LabelKind.NUMBER)
    assert read(numbers, Task.CLASSES) == [("1", "3"), 0, -1, 1]


def test_a_cache_without_labels_is_refused(tiny: Path, tmp_path: Path) -> None:
    cache, _ = run({"text": ["good", "bad"]}, tmp_path / "n.h5", tiny, label_column=None)
    with pytest.raises(TableError, match="has no labels; name a table of them with `labels`"):
        for_task(cache, Task.AUTO, None)
