"""The CUDA backend's order of work, with copies that are noted instead of made: no GPU is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from headstart.stages.encoders.cuda import QUEUED, CudaBackend
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
        self.events: list[tuple[str, float]] = []
        self.here = False  # whether the device is the thread's

    @contextlib.contextmanager
    def on_device(self) -> Iterator[None]:
        self.here = True
        yield
        self.here = False

    def to_host(self, tensors: dict[str, torch.Tensor]) -> Callable[[], dict[str, Any]]:
        assert self.here
        self.pending += 1
        self.most = max(self.most, self.pending)
        first = float(tensors["cls"][0])
        self.events.append(("begun", first))

        def wait() -> dict[str, Any]:
            self.pending -= 1
            self.events.append(("fetched", first))
            return {name: tensor.numpy() for name, tensor in tensors.items()}

        return wait


BATCHES = [[np.full(length, number, np.int32) for length in (3, 2, 2)] for number in range(1, 8)]
EXPECTED = [[[3 * number], [2 * number], [2 * number]] for number in range(1, 8)]


@pytest.mark.parametrize(("room", "halved", "most"), [(7, 0, QUEUED), (4, 7, 1), (3, 14, 1)])
def test_batches_come_in_order_and_others_are_begun_while_one_is_fetched(room: int, halved: int, most: int) -> None:
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
    assert (backend.halved_batches, copies.most, copies.pending) == (1, QUEUED, 0)


def test_batches_are_asked_for_and_begun_before_the_first_of_them_is_fetched() -> None:
    copies: Any = Copies()

    def coming() -> Iterator[list[Any]]:
        for number, batch in enumerate(BATCHES[: QUEUED + 1], 1):
            copies.events.append(("asked for", 3.0 * number))
            yield batch

    list(CudaBackend(Sums(), copies).encode_all(coming()))
    begun = [(what, 3.0 * number) for number in range(1, QUEUED + 2) for what in ("asked for", "begun")]
    fetched = [("fetched", 3 * number) for number in range(1, QUEUED + 2)]
    assert copies.events == [*begun[: 2 * QUEUED], fetched[0], *begun[2 * QUEUED :], *fetched[1:]]


def test_a_batch_is_computed_on_its_device_whatever_the_thread() -> None:
    copies: Any = Copies()

    class Watched(Sums):
        def __call__(self, sequences: Any) -> dict[str, torch.Tensor]:
            assert copies.here
            return super().__call__(sequences)

    backend = CudaBackend(Watched(), copies)
    assert backend.encode(BATCHES[0])["cls"].tolist() == EXPECTED[0] and not copies.here
    assert [features["cls"].tolist() for features in backend.encode_all(BATCHES)] == EXPECTED


def test_an_empty_batch_comes_back_in_its_turn() -> None:
    copies: Any = Copies()
    coming: list[list[Any]] = [[], BATCHES[0], [], [], BATCHES[1], []]
    found = [features and features["cls"].tolist() for features in CudaBackend(Sums(), copies).encode_all(coming)]
    assert found == [{}, EXPECTED[0], {}, {}, EXPECTED[1], {}]


def test_a_sequence_that_finds_memory_when_the_batch_before_is_fetched_is_encoded() -> None:
    copies: Any = Copies()

    class Shared(Sums):
        def __call__(self, sequences: Any) -> dict[str, torch.Tensor]:
            self.room = 3 if copies.pending else 100
            return super().__call__(sequences)

    backend, long = CudaBackend(Shared(), copies), [np.ones(50, np.int32)]
    found = [features["cls"].tolist() for features in backend.encode_all([BATCHES[0], long, BATCHES[1]])]
    assert (found, backend.halved_batches) == ([EXPECTED[0], [[50]], EXPECTED[1]], 0)


@pytest.mark.parametrize("error", [MemoryError(), ValueError("shapes do not fit")])
def test_an_error_comes_in_its_turn(error: Exception) -> None:
    copies: Any = Copies()

    class Fails(Sums):
        def __call__(self, sequences: Any) -> dict[str, torch.Tensor]:
            if len(sequences[0]) == 5:
                raise error
            return super().__call__(sequences)

    found = []
    with pytest.raises(type(error)):
        for features in CudaBackend(Fails(), copies).encode_all([*BATCHES[:2], [np.ones(5, np.int32)], BATCHES[2]]):
            found.append(features["cls"].tolist())
    assert found == EXPECTED[:2]


def test_a_sequence_that_is_too_long_alone_is_named() -> None:
    copies: Any = Copies()
    batch = [np.ones(length, np.int32) for length in (2, 2, 2, 9)]
    with pytest.raises(MemoryFullError) as raised:
        list(CudaBackend(Sums(8), copies).encode_all([batch]))
    assert raised.value.sequence == 3
