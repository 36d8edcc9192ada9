"""How packed batches run: on a CPU, each core takes a batch of its own."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np
import torch

from ...threads import ordered_map
from ...types import Features, TokenIds
from ..backend import Backend, Forward
from ..cuda import CopyStream, CudaBackend
from ..memory import MemoryFullError


class PackedCpuBackend(Backend):
    """Encodes a batch on each core, so that no core waits for another at the end of each product."""

    def encode_all(self, batches: Iterable[Sequence[TokenIds]]) -> Generator[dict[str, Features], None, None]:
        begun: collections.deque[Sequence[TokenIds]] = collections.deque()  # and not yielded
        coming = iter(batches)
        while True:
            full = False
            with contextlib.closing(ordered_map(self._try, _noted(coming, begun))) as results:
                for features in results:
                    if features is None:
                        full = True
                        break
                    begun.popleft()
                    yield features
            if not full:
                return
            while begun:  # one after the other: now none holds memory that another one needs
                yield self.encode(begun.popleft())

    def _try(self, sequences: Sequence[TokenIds]) -> dict[str, Features] | None:
        """`encode`, or None where the memory is full: another batch may hold the memory that this one needs."""
        try:
            return self.encode(sequences)
        except MemoryFullError:
            return None

    def _run(self, sequences: Sequence[TokenIds]) -> dict[str, Features]:
        features = super()._run(sequences)
        if len(sequences) == 1 or all(np.isfinite(values).all() for values in features.values()):
            return features
        # Attention multiplies a neighbour's values by zero, so one that is not finite spoils others: see `attend`.
        alone = [self.encode([sequence]) for sequence in sequences]
        return {name: np.concatenate([values[name] for values in alone]) for name in features}


def _noted(
    batches: Iterator[Sequence[TokenIds]], begun: collections.deque[Sequence[TokenIds]]
) -> Iterator[Sequence[TokenIds]]:
    """The same batches, each noted when it is asked for."""
    for batch in batches:
        begun.append(batch)
        yield batch


def packed_backend(forward: Forward, device: torch.device) -> Backend:
    """What runs a packed pass on its device."""
    return PackedCpuBackend(forward) if device.type == "cpu" else CudaBackend(forward, CopyStream(device))
