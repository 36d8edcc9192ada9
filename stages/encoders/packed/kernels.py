"""What of the packed pass depends on the kind of device: `cpu.CpuKernels` and `varlen.CudaKernels`."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch.nn.functional import embedding

from ..pooling import Feature
from .activations import gate
from .attention import Attention, Group, Heads, Norm, Token
from .linear import Linear
from .states import Ending, Input, PlainEnding, RowNorm, States

Tensor = torch.Tensor
Lookup = tuple[Tensor, Tensor | None]
"""A table (n, width) float32, and the row of it for each token, (tokens,) int64; None for the first row for all."""


class UnfitError(ValueError):
    """An encoder, a device or a release of torch is unfit for the packed pass. The message says why."""


class Kernels(abc.ABC):
    """Makes the parts of a pass for one kind of device."""

    IN_CHUNKS: ClassVar[bool]
    """Whether a feed-forward takes a few rows at a time, whose intermediate results stay in a core's cache."""
    ABSORBS: ClassVar[bool]
    """Whether the attention of one token a sequence applies the keys' weights to its query: `AbsorbedAttention`."""

    @abc.abstractmethod
    def linear(self, weight: Tensor, bias: Tensor, *, rows: int) -> Linear:
        """A layer of `Linear`'s weight and bias, for about so many rows at once."""

    @abc.abstractmethod
    def rms_norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Each row divided by the root of its mean square, times the weight; float32, as a new tensor."""

    @abc.abstractmethod
    def self_attention(self, heads: Heads, query_key_value: Linear) -> Attention:
        """The attention of every token; an UnfitError where it is of a kind that the device does not compute."""

    @abc.abstractmethod
    def one_query_attention(self, heads: Heads, token: Token, *, query: Linear, key_value: Linear) -> Attention:
        """The attention of one token of each sequence; an UnfitError likewise."""

    def embed(self, tables: Sequence[Lookup], norm: Norm, following: Input) -> States:
        """The states of tokens that begin as the sum of rows of tables, normalised; the first names a row for each."""
        words, ids = tables[0]
        assert ids is not None
        rows = embedding(ids, words)
        for table, places in tables[1:]:
            rows += table[0] if places is None else embedding(places, table)
        return following.of(self.pad(norm(rows)))

    def ending(self, projection: Linear, *, branch_norm: RowNorm | None, norm: RowNorm | None) -> Ending:
        """The end of a branch: its projection, the norm of that, and the norm of the sum with the residual."""
        return PlainEnding(projection=projection, branch_norm=branch_norm, norm=norm)

    def gate(self, rows: Tensor, activation: str) -> Tensor:
        """`activations.gate`."""
        return gate(rows, activation)

    @abc.abstractmethod
    def place(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU, which a batch needs, on the device; nothing waits for it."""

    def load(self, weight: Tensor) -> Tensor:
        """A weight of the CPU, on the device."""
        return weight

    def on_device(self) -> AbstractContextManager[Any]:
        """A block in which the device is this thread's, for what does not look where its tensors are."""
        return nullcontext()

    @abc.abstractmethod
    def pad(self, rows: Tensor) -> Tensor:
        """(tokens, width), with rows of zeros up to a number that suits the products; they belong to no sequence."""

    @abc.abstractmethod
    def token_rows(self, groups: Sequence[Group], token: Token) -> Tensor:
        """The row of that token of each sequence, int64, on the device: (sequences,), or more as in `pad`."""

    @abc.abstractmethod
    def pool(self, hidden_states: Tensor, groups: Sequence[Group], feature: Feature) -> Tensor:
        """(tokens, width) to (sequences, width); for the pooler, the states that it takes."""
