"""Batches on a CUDA device: copies to it and from it run beside the computation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from ..types import Features, TokenIds
from .backend import Backend, Forward
from .memory import is_memory_full

QUEUED = 4
"""Batches that are queued on a device before the first of them is waited for: it works on while Python stalls, as it
does for some milliseconds where another thread holds its lock."""


class CopyStream:
    """A CUDA stream of its own for copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def on_device(self) -> Any:
        """A block in which the device is this thread's: torch asks for its stream, and Triton launches there."""
        return torch.cuda.device(self._device)

    def to_device(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        """Copy an array to the device; the computation waits for it."""
        with torch.cuda.stream(self._stream):
            tensor = torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self._stream)
        tensor.record_stream(torch.cuda.current_stream())
        return tensor

    def to_host(self, tensors: dict[str, torch.Tensor]) -> Callable[[], dict[str, Features]]:
        """Begin to copy tensors from the device, as float32; the result waits until they are here."""
        host = {name: torch.empty(t.shape, dtype=torch.float32, pin_memory=True) for name, t in tensors.items()}
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for name, tensor in tensors.items():
                host[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)

        def wait() -> dict[str, Features]:
            event.synchronize()
            return {name: tensor.numpy() for name, tensor in host.items()}

        return wait


class CudaBackend(Backend):
    """Queues batches while the features of those before are computed and copied back."""

    def __init__(self, forward: Forward, copies: CopyStream) -> None:
        super().__init__(forward)
        self._copies = copies

    def encode_all(self, batches: Iterable[Sequence[TokenIds]]) -> Generator[dict[str, Features], None, None]:
        started: list[Callable[[], dict[str, Features]]] = []
        for batch in batches:
            begun = self._begin(batch)
            if begun is None:
                yield from (wait() for wait in started)  # which frees their memory for this one
                started.clear()
                yield self.encode(batch)
            else:
                started.append(begun)
            if len(started) == QUEUED:
                yield started.pop(0)()
        yield from (wait() for wait in started)

    def _run(self, sequences: Sequence[TokenIds]) -> dict[str, Features]:
        return self._start(sequences)()

    def _encode_halves(self, halves: Sequence[Sequence[TokenIds]]) -> dict[str, Features]:
        torch.cuda.empty_cache()
        return super()._encode_halves(halves)

    def _begin(self, sequences: Sequence[TokenIds]) -> Callable[[], dict[str, Features]] | None:
        """`_start`, whose error is raised by what is returned, in the batch's turn.

        None where the memory is full: the batch before may hold the memory that this one needs.
        """
        if not sequences:
            return dict
        try:
            return self._start(sequences)
        except Exception as error:
            if is_memory_full(error):
                return None
            return functools.partial(_raise, error)

    def _start(self, sequences: Sequence[TokenIds]) -> Callable[[], dict[str, Features]]:
        """Queue a batch: the copy of its ids, its computation, and the copy of its features back."""
        with torch.inference_mode(), self._copies.on_device():
            return self._copies.to_host(self.forward(sequences))


def _raise(error: Exception) -> NoReturn:
    raise error
