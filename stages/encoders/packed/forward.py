"""The packed forward pass: the model's own numbers, and no product with padding.

The sequences of a batch lie end to end as one matrix of (tokens, width), so every product with a weight runs over real
tokens alone (Zeng et al., Boosting Distributed Training Performance of the Unpadded BERT Model, 2022,
https://arxiv.org/abs/2208.08124). Attention runs once for each group of sequences of equal length on a CPU (``cpu``),
and once for all on a CUDA device (``varlen``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...settings import ForwardMode
from ...types import TokenIds
from ..pooling import Feature, Pooling
from .attention import Group, Token, group_sequences
from .cpu import CPU
from .kernels import Kernels
from .layers import Layer
from .linear import Linear
from .states import Input, RowNorm, States

Tensor = torch.Tensor
Embed = Callable[[Sequence[TokenIds], Sequence[Group], Input], States]
"""Token sequences and their groups to states as the first layer takes them, with some rows of no sequence at the end on
CPUs."""
BuildLayer = Callable[[int, Token | None], Layer]
"""Builds the layer of a number, from 0: for every token, or for one token of each sequence."""

_TOKENS = {Pooling.CLS: Token.FIRST, Pooling.POOLER: Token.FIRST, Pooling.LAST: Token.LAST}


class PackedForward:
    """The pass of a frozen encoder over sequences that lie end to end."""

    mode = ForwardMode.PACKED

    def __init__(
        self,
        features: Sequence[Feature],
        *,
        layers: int,
        embed: Embed,
        layer: BuildLayer,
        dtype: torch.dtype,
        norm: RowNorm | None = None,
        pooler: Callable[[], Linear] | None = None,
        kernels: Kernels = CPU,
    ) -> None:
        """Build the layers up to the last one that a feature needs, of an encoder that has ``layers`` layers.

        Args:
            layer: builds a layer.
            dtype: of the products.
            norm: follows the last layer.
            pooler: builds the dense layer of the pooler, where a feature needs it.
            kernels: of the device.
        """
        self.embed, self._dtype, self._kernels = embed, dtype, kernels
        pooled = any(feature.pooling is Pooling.POOLER for feature in features)
        self._pooler = pooler() if pooled and pooler is not None else None
        self._features = [[f for f in features if (f.layer or layers) == n] for n in range(1, layers + 1)]
        last = max(number for number, taken in enumerate(self._features) if taken)
        self._pooled = Input(norm if last == layers - 1 else None, torch.float32)  # of the last layer
        tokens = {
            None if f.pooling is Pooling.CLS and f.skipped else _TOKENS.get(f.pooling) for f in self._features[last]
        }
        token = tokens.pop() if len(tokens) == 1 else None
        self.layers = [*(layer(number, None) for number in range(last)), layer(last, token)]

    def __call__(self, sequences: Sequence[TokenIds]) -> dict[str, Tensor]:
        """Encode a batch, in which sequences of equal length should stand together.

        Returns:
            By the features' names: (sequences, width) float32 each.
        """
        with self._kernels.on_device():
            return self._compute(sequences)

    def _compute(self, sequences: Sequence[TokenIds]) -> dict[str, Tensor]:
        groups = group_sequences([len(sequence) for sequence in sequences])
        states = self.embed(sequences, groups, self.layers[0].input)
        inputs = [*(layer.input for layer in self.layers[1:]), self._pooled]
        pooled: dict[str, Tensor] = {}
        for layer, features, following in zip(self.layers, self._features, inputs, strict=False):
            states = layer(states, groups, following)
            hidden_states = states.input if following is self._pooled else states.stream
            if layer.token is not None:
                ones = hidden_states[: len(sequences)]
                pooled |= {f.name: self._pool_one(ones, f.pooling) for f in features}
            else:
                pooled |= {f.name: self._pool(hidden_states, groups, f) for f in features}
        return pooled

    def _pool(self, hidden_states: Tensor, groups: Sequence[Group], feature: Feature) -> Tensor:
        """(tokens, width) to (sequences, width)."""
        return self._pool_one(self._kernels.pool(hidden_states, groups, feature), feature.pooling)

    def _pool_one(self, ones: Tensor, pooling: Pooling) -> Tensor:
        """(sequences, width): one token's states, or what the pooler makes of them."""
        if pooling is Pooling.POOLER and self._pooler is not None:
            return torch.tanh(self._pooler(ones.to(self._dtype))).float()
        return ones
