"""What passes from one part of a layer to the next: the residual stream, and the input that is made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch
from torch.nn.functional import layer_norm

from .linear import Linear

Tensor = torch.Tensor
RmsNorm = Callable[[Tensor, Tensor, float], Tensor]
"""Rows (..., width), a weight (width,) and an epsilon to the rows divided by the roots of their mean squares, times the
weight; float32, as a new tensor."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RowNorm:
    """A norm of rows (..., width), in float32."""

    weight: Tensor  # (width,) float32
    bias: Tensor | None  # (width,) float32
    epsilon: float
    rms: RmsNorm | None  # None for layer normalisation; otherwise there is no bias

    @property
    def parts(self) -> tuple[Tensor, Tensor | None, float, bool]:
        """Weight, bias, epsilon, and whether it is layer normalisation."""
        return self.weight, self.bias, self.epsilon, self.rms is None

    def __call__(self, rows: Tensor) -> Tensor:
        if self.rms is not None:
            return self.rms(rows, self.weight, self.epsilon)
        return layer_norm(rows, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclasses.dataclass(frozen=True, eq=False)
class States:
    """The states of some tokens, once as the sum that branches are added to, and once as the next branch takes them."""

    stream: Tensor  # (n, width) float32
    input: Tensor  # (n, width), in the dtype of the next part's `Input`; often the stream itself

    @classmethod
    def empty(cls, count: int, like: Tensor, following: Input) -> States:
        """States of so many tokens to write to, as wide as float32 rows that are given, and on their device.

        They are one tensor, where the input is the stream itself."""
        stream = like.new_empty(count, like.shape[1])
        same = following.norm is None and following.dtype == stream.dtype
        return cls(stream, stream if same else torch.empty_like(stream, dtype=following.dtype))

    def write(self, rows: slice, part: States) -> None:
        """Put the states of some rows in their place."""
        self.stream[rows] = part.stream
        if self.input is not self.stream:
            self.input[rows] = part.input


@dataclasses.dataclass(frozen=True, eq=False)
class Input:
    """How the next part of a layer takes the residual stream."""

    norm: RowNorm | None
    dtype: torch.dtype

    def of(self, stream: Tensor) -> States:
        """The states of a residual stream, (n, width) float32."""
        return States(stream, (stream if self.norm is None else self.norm(stream)).to(self.dtype))


class Ending(Protocol):
    """The end of a branch: its projection, and how the result is added to what the branch began with."""

    def __call__(self, rows: Tensor, residual: Tensor, following: Input) -> States:
        """(n, inputs) in the products' dtype and (n, width) float32 to the states that follow."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainEnding:
    """Each step by an operator of torch's; the product may add the residual."""

    projection: Linear
    branch_norm: RowNorm | None  # of the branch, before it is added
    norm: RowNorm | None  # of the sum

    def __call__(self, rows: Tensor, residual: Tensor, following: Input) -> States:
        if self.branch_norm is None:
            total = self.projection.plus(rows, residual)
        else:
            total = self.branch_norm(self.projection(rows).float()).add_(residual)
        return following.of(total if self.norm is None else self.norm(total))
