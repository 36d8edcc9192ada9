"""Memory that runs out in a batch: it is halved, down to one text, and then the row is named."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extracting import room_for, run
from headstart.cache.errors import StorageError
from headstart.stages.encoders.memory import MemoryFullError, halving, is_memory_full
from headstart.stages.encoders.packed.forward import PackedForward
from tiny import tiny_rows


@pytest.fixture
def table() -> dict[str, list[str]]:
    texts, labels = zip(*tiny_rows(60), strict=True)
    return {"text": list(texts), "label": list(labels)}


def test_a_batch_that_takes_too_much_memory_is_halved(
    table: dict[str, list[str]], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run(table, tmp_path / "whole.h5", tiny, batch_tokens=512)
    assert whole.record["halved_batches"] == 0
    room_for(monkeypatch, 100)
    halved, _ = run(table, tmp_path / "halved.h5", tiny, batch_tokens=512)
    assert halved.record["halved_batches"] > 0
    np.testing.assert_allclose(halved.features(), whole.features(), atol=1e-5)


def test_a_text_that_takes_too_much_memory_alone_is_named(
    table: dict[str, list[str]], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table["text"][17] = "the film " * 40
    room_for(monkeypatch, 70)
    with pytest.raises(StorageError, match=r"row 18.*82 tokens"):
        run(table, tmp_path / "out.h5", tiny, batch_tokens=512)
    assert not (tmp_path / "out.h5").exists()
    monkeypatch.undo()
    cache, _ = run(table, tmp_path / "out.h5", tiny, batch_tokens=512)
    assert cache.rows == 60


def test_a_text_that_does_not_fit_beside_another_batch_is_encoded_alone(
    table: dict[str, list[str]], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are encoded side by side; one that finds no memory has it all, once the others are done."""
    whole, _ = run(table, tmp_path / "whole.h5", tiny, batch_tokens=64)
    original, at_work, refused = PackedForward.__call__, threading.Semaphore(1), []
    together = threading.Barrier(2)

    def call(self: PackedForward, sequences: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() and not refused:
            together.wait(timeout=30)
        if not at_work.acquire(blocking=False):
            refused.append(len(sequences))
            raise MemoryError
        try:
            time.sleep(0.05)
            return original(self, sequences)
        finally:
            at_work.release()

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(PackedForward, "__call__", call)
    alone, _ = run(table, tmp_path / "alone.h5", tiny, batch_tokens=64)
    assert refused
    np.testing.assert_allclose(alone.features(), whole.features(), atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_halves_hold_the_whole_batch(size: int) -> None:
    batch = list(range(size))
    if size == 1:
        with pytest.raises(MemoryFullError), halving(batch):
            raise MemoryError
        return
    with halving(batch) as halves:
        raise MemoryError
    assert [item for half in halves for item in half] == batch and all(halves)


def test_what_is_no_lack_of_memory_is_raised() -> None:
    with pytest.raises(RuntimeError, match="shapes"), halving([1, 2]):
        raise RuntimeError("shapes do not fit")
    assert is_memory_full(torch.OutOfMemoryError("CUDA out of memory"))
