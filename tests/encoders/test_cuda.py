"""The CUDA backend's order of work, with copies that are noted instead of made: no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from headstart.stages.encoders.cuda import CudaBackend
from headstart.stages.encoders.memory import MemoryFullError
from headstart.stages.settings import ForwardMode


class Sums:
    """Each sequence's sum as its feature; batches of more tokens than ``room`` find no memory."""

    mode = ForwardMode.PADDED

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room

    def __call__(self, sequences: Any) -> dict[str, torch.Tensor]:
        if sum(map(len, sequences)) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"cls": torch.tensor([[float(sequence.sum())] for sequence in sequences])}


class Copies:
    """Notes how many copies are under way."""

    def __init__(self) -> None:
        self.pending, self.most = 0, 0

    def to_host(self, tensors: dict[str, torch.Tensor]) -> Callable[[], dict[str, Any]]:
        self.pending += 1
        self.most = max(self.most, self.pending)

        def wait() -> dict[str, Any]:
            self.pending -= 1
            return {name: tensor.numpy() for name, tensor in tensors.items()}

        return wait


BATCHES = [[np.full(length, number, np.int32) for length in (3, 2, 2)] for number in range(1, 8)]
EXPECTED = [[[3 * number], [2 * number], [2 * number]] for number in range(1, 8)]


@pytest.mark.parametrize(("room", "halved", "most"), [(7, 0, 2), (4, 7, 1), (3, 14, 1)])
def test_batches_come_in_order_and_one_is_begun_while_another_is_fetched(room: int, halved: int, most: int) -> None:
    copies: Any = Copies()
    backend = CudaBackend(Sums(room), copies)
    assert [features["cls"].tolist() for features in backend.encode_all(iter(BATCHES))] == EXPECTED
    assert (backend.halved_batches, copies.most, copies.pending) == (halved, most, 0)


def test_a_batch_is_halved_when_the_one_before_is_fetched() -> None:
    """Its memory is free by then."""
    copies: Any = Copies()
    batches = [*BATCHES[:2], [np.ones(9, np.int32), np.ones(1, np.int32)], *BATCHES[2:]]
    backend = CudaBackend(Sums(9), copies)
    found = [features["cls"].tolist() for features in backend.encode_all(batches)]
    assert found == [*EXPECTED[:2], [[9], [1]], *EXPECTED[2:]]
    assert (backend.halved_batches, copies.most, copies.pending) == (1, 2, 0)


def test_a_sequence_that_is_too_long_alone_is_named() -> None:
    copies: Any = Copies()
    batch = [np.ones(length, np.int32) for length in (2, 2, 2, 9)]
    with pytest.raises(MemoryFullError) as raised:
        list(CudaBackend(Sums(8), copies).encode_all([batch]))
    assert raised.value.sequence == 3
