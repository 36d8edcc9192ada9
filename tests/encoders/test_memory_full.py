"""Memory that runs out in a batch: it is halved, down to one text, and then the row is named."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extracting import room_for, run, settings
from headstart.cache.errors import StorageError
from headstart.stages.encoders.backend import Backend
from headstart.stages.encoders.memory import MemoryFullError, halving, is_memory_full
from headstart.stages.encoders.packed.forward import PackedForward
from headstart.stages.encoders.session import EncoderSession
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


def test_after_a_batch_that_found_no_memory_batches_are_encoded_side_by_side_again(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second finds no memory: it and the two that are begun are encoded alone; of the others, 2 at a time."""
    backend = EncoderSession(settings(tiny)).encoder.backend
    main, alone, refused, together = threading.get_ident(), [], [], threading.Barrier(2, timeout=30)
    original = Backend.encode

    def encode(self: Backend, sequences: Any) -> Any:
        number = int(sequences[0][0]) - 10
        if threading.get_ident() == main:
            alone.append(number)
        elif number > 3:
            together.wait()  # otherwise it times out
        elif number == 1 and not refused:
            refused.append(number)
            raise MemoryFullError(0)
        return original(self, sequences)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(Backend, "encode", encode)
    batches = [[np.array([10 + number, 3, 4], np.int32)] for number in range(10)]
    found = [features["cls"] for features in backend.encode_all(iter(batches))]
    assert (refused, alone) == ([1], [1, 2, 3])
    for batch, values in zip(batches, found, strict=True):
        np.testing.assert_allclose(values, original(backend, batch)["cls"], atol=1e-6)


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
