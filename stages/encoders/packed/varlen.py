"""The packed pass on a CUDA device: attention over all sequences of a batch is one call, whatever their lengths.

torch calls FlashAttention for that (Dao, 2023, https://arxiv.org/abs/2307.08691). It takes numbers in half precision,
on a GPU of the Ampere generation or a newer one, and adds nothing to scores.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import rms_norm

from ...types import Indices
from ..pooling import Feature, Pooling
from .attention import Attention, Group, Heads, Norm, Rope, Token, Window
from .kernels import Kernels, Lookup, Tensor, UnfitError
from .linear import Linear
from .states import Ending, Input, PlainEnding, RowNorm, States

_NEEDED = {"scale", "window_size", "enable_gqa", "num_splits"}
_SINCE = "2.12"  # of torch, whose varlen_attn has these parameters
_AMPERE = (8, 0)
_WIDEST = 256  # of a head, which is a multiple of 8
_UNLIMITED = -1


class VarlenAttn(Protocol):
    """`torch.nn.attention.varlen.varlen_attn`, as far as it is used here."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None,
        window_size: tuple[int, int],
        enable_gqa: bool,
        num_splits: int,
    ) -> Tensor:
        """(tokens, heads, width) each to (tokens of ``query``, heads, width); offsets are (sequences + 1,) int32."""


def find_varlen_attn() -> VarlenAttn | None:
    """torch's `varlen_attn`; None where it is missing, or lacks a parameter that is used here.

    Among these is ``num_splits``: without it, the longest sequence of a batch may decide the bits of the others.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    found: Any = varlen_attn
    return found if inspect.signature(found).parameters.keys() >= _NEEDED else None


def cuda_kernels(device: torch.device, dtype: torch.dtype, *, biased_scores: bool) -> CudaKernels:
    """The kernels of a CUDA device, for products in ``dtype``, by torch's operators alone.

    Raises:
        UnfitError: torch, the precision, the GPU or the encoder's attention is unfit for `varlen_attn`.
    """
    if biased_scores:
        raise UnfitError("its attention adds a bias to each score")
    if dtype == torch.float32:
        raise UnfitError("without padding, a GPU computes in bfloat16 or float16, and this is float32")
    if torch.cuda.get_device_capability(device) < _AMPERE:
        raise UnfitError("without padding, it takes a GPU of the Ampere generation or a newer one")
    varlen_attn = find_varlen_attn()
    if varlen_attn is None:
        raise UnfitError(f"without padding, it takes torch {_SINCE}, and this is {torch.__version__}")
    return CudaKernels(device, varlen_attn)


def find_fused() -> types.ModuleType | None:
    """The module `native.fused`; None where Triton is missing, or fails to load."""
    try:
        from ..native import fused
    except Exception:  # of any kind: Triton looks for drivers and libraries
        return None
    return fused


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Runs:
    """Some tokens of each sequence that follow each other: those of all sequences, end to end, on the device."""

    offsets: Tensor  # (sequences + 1,) int32: where each sequence's begin, and where the last one's end
    longest: int  # tokens
    rows: Tensor  # (tokens,) int64: where each stands in the matrix of all tokens
    positions: Tensor  # (tokens,) int64: where each stands in its sequence


class CudaKernels(Kernels):
    """One call for all sequences of a batch. What says where they lie is copied once a batch; nothing waits for it.

    ``fused`` is `native.fused`, for one pass over memory in the place of several; None for torch's operators. It may be
    set at any time.
    """

    IN_CHUNKS = False
    ABSORBS = False  # which takes a product for each length

    def __init__(self, device: torch.device, varlen_attn: VarlenAttn, fused: types.ModuleType | None = None) -> None:
        self._device, self.varlen_attn, self.fused = device, varlen_attn, fused

    def linear(self, weight: Tensor, bias: Tensor, *, rows: int) -> Linear:
        return Linear(weight, bias)

    def rms_norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return rms_norm(rows, weight.shape, weight, epsilon)

    def self_attention(self, heads: Heads, query_key_value: Linear) -> Attention:
        _require_fit(heads)
        return VarlenSelfAttention(heads=heads, query_key_value=query_key_value, kernels=self)

    def one_query_attention(self, heads: Heads, token: Token, *, query: Linear, key_value: Linear) -> Attention:
        _require_fit(heads)
        return VarlenOneQueryAttention(heads=heads, token=token, query=query, key_value=key_value, kernels=self)

    def ending(self, projection: Linear, *, branch_norm: RowNorm | None, norm: RowNorm | None) -> Ending:
        plain = PlainEnding(projection=projection, branch_norm=branch_norm, norm=norm)
        return FusedEnding(plain=plain, kernels=self)

    def embed(self, tables: Sequence[Lookup], norm: Norm, following: Input) -> States:
        if self.fused is None or not isinstance(norm, RowNorm):
            return super().embed(tables, norm, following)
        (words, ids), after = tables[0], following.norm and following.norm.parts
        assert ids is not None
        states = States.empty(len(ids), words, following)
        self.fused.embed(tables, (norm.parts, after), stream=states.stream, following=states.input)
        return states

    def gate(self, rows: Tensor, activation: str) -> Tensor:
        if self.fused is None:
            return super().gate(rows, activation)
        gated: Tensor = self.fused.gate(rows, activation)
        return gated

    def prepare(self, how: Heads, heads: Tensor, turns: Tensor | None, *, of_keys: bool) -> None:
        """`Heads.prepare` of (tokens, heads, width)."""
        if self.fused is None or (how.norms is None and turns is None):
            how.prepare(heads[None], turns, of_keys=of_keys)
        else:
            self.fused.prepare(heads, None if how.norms is None else how.norms[of_keys].parts, turns)

    def place(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def load(self, weight: Tensor) -> Tensor:
        return weight.to(self._device)  # not pinned: that memory would stay locked

    def on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def pad(self, rows: Tensor) -> Tensor:
        return rows

    def token_rows(self, groups: Sequence[Group], token: Token) -> Tensor:
        return self.one(groups, token).rows

    def pool(self, hidden_states: Tensor, groups: Sequence[Group], feature: Feature) -> Tensor:
        pooling, skipped = feature.pooling, feature.skipped
        if pooling in (Pooling.CLS, Pooling.POOLER):
            return hidden_states[self._from(groups, skipped, 1).rows]
        if pooling is Pooling.LAST:
            return hidden_states[self.token_rows(groups, Token.LAST)]
        runs = self._from(groups, skipped)
        states = hidden_states[runs.rows] if skipped else hidden_states
        if pooling is Pooling.WEIGHTED_MEAN:
            weights = (runs.positions + 1).to(states.dtype)[:, None]
            return _reduce(states * weights, runs, "sum") / _reduce(weights, runs, "sum")
        if pooling is Pooling.MEAN_SQRT_LEN:
            return _reduce(states, runs, "sum") / runs.offsets.diff()[:, None].sqrt()
        return _reduce(states, runs, "max" if pooling is Pooling.MAX else "mean")

    def every(self, groups: Sequence[Group]) -> Runs:
        """Every token of each sequence."""
        return self._from(groups, 0)

    def one(self, groups: Sequence[Group], token: Token) -> Runs:
        """That token of each sequence."""
        return self._from(groups, 0, 1) if token is Token.FIRST else self._seen(groups, token, 0)

    def seen(self, groups: Sequence[Group], token: Token, mask: Window | None) -> Runs:
        """The tokens that this token of each sequence sees."""
        limit = None if mask is None else mask.after if token is Token.FIRST else mask.before
        return self.every(groups) if limit is None else self._seen(groups, token, limit)

    def turns(self, groups: Sequence[Group], rope: Rope | None, runs: Runs) -> Tensor | None:
        """`Rope.turns` of the tokens of some runs."""
        if rope is None:
            return None

        def make() -> Tensor:
            return dataclasses.replace(rope, frequencies=self.place(rope.frequencies)).turns(runs.positions)

        turns: Tensor = groups[0].once((rope, runs), make)
        return turns

    def _from(self, groups: Sequence[Group], first: int, most: int | None = None) -> Runs:
        """The tokens of each sequence from one on: all, or so many at most."""

        def choose(lengths: Indices) -> tuple[Indices, Indices]:
            counts = lengths - first
            return np.full_like(lengths, first), counts if most is None else np.minimum(counts, most)

        return self._once(groups, (first, most), choose)

    def _seen(self, groups: Sequence[Group], token: Token, others: int) -> Runs:
        """The token at an end of each sequence, and so many others beside it."""

        def choose(lengths: Indices) -> tuple[Indices, Indices]:
            counts = np.minimum(lengths, others + 1)
            return np.zeros_like(lengths) if token is Token.FIRST else lengths - counts, counts

        return self._once(groups, (token, others), choose)

    def _once(self, groups: Sequence[Group], key: Any, choose: Callable[[Indices], tuple[Indices, Indices]]) -> Runs:
        """Runs for all layers of a batch; ``choose`` says from each sequence's length where they begin, and how many
        tokens they have."""

        def make() -> Runs:
            lengths = np.repeat([g.length for g in groups], [g.count for g in groups])
            first, counts = choose(lengths)
            ends = counts.cumsum()
            positions = np.arange(ends[-1]) - np.repeat(ends - counts - first, counts)
            rows = positions + np.repeat(lengths.cumsum() - lengths, counts)
            offsets = np.concatenate([[0], ends]).astype(np.int32)
            placed = [self.place(torch.from_numpy(array)) for array in (offsets, rows, positions)]
            return Runs(offsets=placed[0], longest=int(counts.max()), rows=placed[1], positions=placed[2])

        runs: Runs = groups[0].once(key, make)
        return runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusedEnding:
    """`PlainEnding`, in which all that follows the product is one pass over memory, where there are kernels for it."""

    plain: PlainEnding
    kernels: CudaKernels

    def __call__(self, rows: Tensor, residual: Tensor, following: Input) -> States:
        plain, fused = self.plain, self.kernels.fused
        if fused is None:
            return plain(rows, residual, following)
        states = States.empty(len(residual), residual, following)
        norms = (plain.branch_norm, plain.norm, following.norm)
        parts = tuple(None if norm is None else norm.parts for norm in norms)
        fused.end(plain.projection(rows), residual, parts, stream=states.stream, following=states.input)
        return states


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarlenSelfAttention:
    """Scaled dot-product attention of every token."""

    heads: Heads
    query_key_value: Linear
    kernels: CudaKernels

    def __call__(self, states: Tensor, groups: Sequence[Group]) -> Tensor:
        how, every = self.heads, self.kernels.every(groups)
        turns = self.kernels.turns(groups, how.rope, every)
        query_key_value = self.query_key_value(states).view(len(states), -1, how.width)
        query, key, value = query_key_value.split_with_sizes([how.heads, how.key_value_heads, how.key_value_heads], 1)
        for of_keys, part in ((False, query), (True, key)):
            self.kernels.prepare(how, part, turns, of_keys=of_keys)
        attention = self.kernels.varlen_attn(
            query,
            key,
            value,
            every.offsets,
            every.offsets,
            every.longest,
            every.longest,
            scale=how.scale,
            window_size=_window_size(how),
            enable_gqa=how.heads != how.key_value_heads,
            num_splits=1,
        )
        return attention.reshape(len(states), -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarlenOneQueryAttention:
    """The same of one token of each sequence, whose keys are those that it sees: then no window is left."""

    heads: Heads
    token: Token
    query: Linear
    key_value: Linear
    kernels: CudaKernels

    def __call__(self, states: Tensor, groups: Sequence[Group]) -> Tensor:
        how, kernels = self.heads, self.kernels
        mask = how.mask if isinstance(how.mask, Window) else None
        one, seen = kernels.one(groups, self.token), kernels.seen(groups, self.token, mask)
        query = self.query(states[one.rows]).view(-1, how.heads, how.width)
        others = states if len(seen.rows) == len(states) else states[seen.rows]
        key, value = self.key_value(others).view(len(others), 2, how.key_value_heads, how.width).unbind(1)
        kernels.prepare(how, query, kernels.turns(groups, how.rope, one), of_keys=False)
        kernels.prepare(how, key, kernels.turns(groups, how.rope, seen), of_keys=True)
        attention = kernels.varlen_attn(
            query,
            key,
            value,
            one.offsets,
            seen.offsets,
            one.longest,
            seen.longest,
            scale=how.scale,
            window_size=(_UNLIMITED, _UNLIMITED),
            enable_gqa=how.heads != how.key_value_heads,
            num_splits=1,
        )
        return attention.reshape(len(query), -1)


def _require_fit(heads: Heads) -> None:
    """Refuse attention that `varlen_attn` does not compute."""
    if heads.width % 8 or heads.width > _WIDEST:
        problem = f"it takes heads of a multiple of 8 numbers, up to {_WIDEST}"
        raise UnfitError(f"without padding, {problem}, and these have {heads.width}")
    _window_size(heads)


def _window_size(heads: Heads) -> tuple[int, int]:
    """How many tokens before and after it a token sees at most, as torch has it."""
    mask = Window(None, None) if heads.mask is None else heads.mask
    if not isinstance(mask, Window):
        raise UnfitError("its attention adds a bias to each score")
    before, after = (_UNLIMITED if limit is None else limit for limit in (mask.before, mask.after))
    return before, after


def _reduce(states: Tensor, runs: Runs, how: str) -> Tensor:
    """(tokens, width) to (sequences, width), summed in the tokens' order: neighbours decide no bit."""
    return torch.segment_reduce(states, how, offsets=runs.offsets, unsafe=True)
