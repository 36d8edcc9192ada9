"""The packed pass on a CPU: attention runs once for each group of sequences of equal length."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..pooling import Feature, Pooling
from .attention import Attention, Group, Heads, OneQueryAttention, SelfAttention, Token, token_rows
from .kernels import Kernels, Tensor
from .linear import Linear, padded_rows
from .linear_cpu import make_linear


class CpuKernels(Kernels):
    """Products whose weights are laid out for the processor, and rows in numbers that suit oneDNN."""

    IN_CHUNKS = True
    ABSORBS = True

    def linear(self, weight: Tensor, bias: Tensor, *, rows: int) -> Linear:
        return make_linear(weight, bias, rows=rows)

    def rms_norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        squares = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(rows.shape[-1])
        normalised: Tensor = rows * squares.add_(epsilon).rsqrt_()
        return normalised.mul_(weight)

    def self_attention(self, heads: Heads, query_key_value: Linear) -> Attention:
        return SelfAttention(heads=heads, query_key_value=query_key_value)

    def one_query_attention(self, heads: Heads, token: Token, *, query: Linear, key_value: Linear) -> Attention:
        return OneQueryAttention(heads=heads, token=token, query=query, key_value=key_value)

    def place(self, tensor: Tensor) -> Tensor:
        return tensor

    def pad(self, rows: Tensor) -> Tensor:
        padded = rows.new_zeros(padded_rows(len(rows)), rows.shape[1])
        padded[: len(rows)] = rows
        return padded

    def token_rows(self, groups: Sequence[Group], token: Token) -> Tensor:
        return token_rows(groups, token)

    def pool(self, hidden_states: Tensor, groups: Sequence[Group], feature: Feature) -> Tensor:
        pooling, skipped = feature.pooling, feature.skipped
        parts = [hidden_states[g.tokens].view(g.count, g.length, -1)[:, skipped:] for g in groups]
        if pooling is Pooling.MEAN:
            return torch.cat([part.mean(1) for part in parts])
        if pooling is Pooling.MEAN_SQRT_LEN:
            return torch.cat([part.sum(1) / part.shape[1] ** 0.5 for part in parts])
        if pooling is Pooling.WEIGHTED_MEAN:
            weights = [torch.arange(1.0, part.shape[1] + 1) + skipped for part in parts]
            return torch.cat([weight / weight.sum() @ part for weight, part in zip(weights, parts, strict=True)])
        if pooling is Pooling.LAST:
            return torch.cat([part[:, -1] for part in parts])
        if pooling is Pooling.MAX:
            return torch.cat([part.amax(1) for part in parts])
        return torch.cat([part[:, 0] for part in parts])


CPU = CpuKernels()
