"""The memory bound: what does not fit lies in temporary files, and the results are the same."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from headstart.cache.errors import StorageError
from headstart.stages.heads import logistic, logistic_batch, logistic_path, scratch
from headstart.stages.heads.confident_learning import find_label_errors, label_scores
from headstart.stages.heads.dataset import Dataset, Splits
from headstart.stages.heads.logistic import LogisticSolver
from headstart.stages.heads.search import search
from headstart.stages.heads.targets import ClassTarget
from headstart.stages.settings import LabelScore, TrainSettings
from headstart.stages.threads import WorkerThreads, open_threads
from torch.utils._python_dispatch import TorchDispatchMode

MEMORY = 1 << 24  # the least that settings allow


def data(rows: int, width: int, classes: int) -> Dataset:
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    features = (rng.normal(size=(classes, width))[labels] * 0.4 + rng.normal(size=(rows, width))).astype(np.float32)
    return Dataset(features=features, labels=labels, index=np.arange(rows))


def splits(rows: Dataset) -> dict[str, Splits]:
    index = rows.index
    train, none = index[: len(index) * 4 // 5], index[:0]
    parts = {
        name: Dataset(features=rows.features, labels=rows.labels, index=some)
        for name, some in (("train", train), ("validation", none), ("test", index[len(train) :]))
    }
    fold = train // 7 % 3 + 1
    fold[:5] = 0  # these rows are in no fold
    groups = {f"{name}_groups": part.index for name, part in parts.items()}
    return {"one": Splits(**parts, **groups, shared_rows=0, fold=fold)}


def test_a_search_with_little_memory_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits lie in files; folds, penalties and pairs of L-BFGS are as many as fit."""
    rows, target = splits(data(400, 6, 7)), ClassTarget(tuple("abcdefg"))
    whole = search(rows, target=target, settings=TrainSettings())
    monkeypatch.setattr(scratch, "_SPAN_NUMBERS", 350)  # 50 rows of 7 classes
    monkeypatch.setattr(scratch, "_SHARE", MEMORY)
    monkeypatch.setattr(logistic_path, "history_within", lambda *_: 3)
    for module in (logistic, logistic_batch, logistic_path):
        monkeypatch.setattr(module, "WIDE", 20)
    little = search(rows, target=target, settings=TrainSettings(memory=MEMORY))
    assert isinstance(little.validated.scores, np.memmap) and not isinstance(whole.validated.scores, np.memmap)
    assert [each.l2 for each in little.search.candidates] == [each.l2 for each in whole.search.candidates]
    for one, other in zip(little.search.candidates, whole.search.candidates, strict=True):
        assert one.mean == pytest.approx(other.mean, rel=2e-3) and one.spread == pytest.approx(other.spread, abs=2e-3)
    assert (little.scaling, little.search.choice and little.search.choice.l2) == (
        whole.scaling,
        whole.search.choice and whole.search.choice.l2,
    )
    np.testing.assert_allclose(little.fit.parameters["weight"], whole.fit.parameters["weight"], atol=1e-3)
    np.testing.assert_allclose(little.validated.scores, whole.validated.scores, atol=0.02)


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, and the most of them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.bytes += size
                    self.most = max(self.most, self.bytes)
                    weakref.finalize(storage, self._gone, key, size)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


class OneThread(WorkerThreads):
    """All work in this thread, where tensors are counted."""

    def map(self, work: Callable[..., Any], *items: Iterable[Any], **_: Any) -> Iterator[Any]:
        return map(work, *items)


def test_a_problem_of_many_weights_takes_few_times_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (logistic, logistic_batch):
        monkeypatch.setattr(module, "WIDE", 1000)
    monkeypatch.setattr(logistic_batch, "_SPAN_LOGITS", 1)
    rows = data(400, 400, 375)
    vector = 4 * 375 * 401
    with OneThread(1) as threads, Live() as live:
        solver = LogisticSolver(
            rows, classes=375, settings=TrainSettings(solver="exact", memory=MEMORY), threads=threads
        )
        live.most = live.bytes
        found, report = solver.solve(30.0)
    assert report.converged and report.passes > 5
    spans = 4 * 64 * (400 + 6 * 375) * 4  # what four spans of 64 rows take
    assert 8 * vector < live.most < MEMORY / 2 + spans
    with open_threads() as many:
        plain = LogisticSolver(rows, classes=375, settings=TrainSettings(solver="exact"), threads=many)
        best, without = plain.solve(30.0)
    assert report.objective == pytest.approx(without.objective, rel=1e-7)
    np.testing.assert_allclose(found["weight"], best["weight"], atol=1e-3)


def test_what_is_made_of_logits_in_a_file_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    logits = (rng.normal(size=(300, 5)) + 2 * np.eye(5)[labels]).astype(np.float32)
    stored = scratch.empty(logits.shape, np.float32, 0)
    stored[:] = logits
    monkeypatch.setattr(scratch, "_SPAN_NUMBERS", 200)
    target = ClassTarget(tuple("abcde"))
    assert target.evaluate(labels, logits, np.arange(300)) == target.evaluate(labels, stored, np.arange(300))
    probabilities = [np.exp(logits), scratch.map_rows(np.exp, stored)]
    errors, same = (find_label_errors(each, labels) for each in probabilities)
    assert np.array_equal(errors.found, same.found) and errors.found.any()
    margins, again = (label_scores(each, labels, LabelScore.NORMALIZED_MARGIN) for each in probabilities)
    assert np.array_equal(margins, again)


def test_a_full_disk_is_said_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StorageError, match="a temporary file could not be written: No space left"):
        scratch.empty((10, 10), np.float32, 0)
