"""What lies between the products of a pass on a CUDA device, in one pass over memory each: kernels in Triton.

Triton comes with torch's builds for CUDA on Linux (Tillet et al., 2019, https://doi.org/10.1145/3315508.3329973). It
compiles a kernel at its first call, for which it needs a C compiler, and keeps it in a folder of the user's. A kernel
computes in float32, and reads and writes each row, or each token's heads, alone: neighbours decide no bit.

GELU after a plain product stays torch's own pass: within cuBLAS's product it would be the approximation by tanh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

Tensor = torch.Tensor
NormParts = tuple[Tensor, Tensor | None, float, bool] | None
"""A norm's weight and bias, (width,) float32, its epsilon, and whether it is layer normalisation. None: no norm."""
_GATED = 1024  # numbers of a row that one program activates
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
"""What `_activate` computes, by the names of `packed.activations.ACTIVATIONS`; another name is a KeyError."""


def end(
    branch: Tensor,
    residual: Tensor,
    norms: tuple[NormParts, NormParts, NormParts],
    *,
    stream: Tensor,
    following: Tensor,
) -> None:
    """Add a branch to the residual stream, and make the input of the next part.

    Args:
        branch: (n, width), in half precision or float32; like the others, contiguous.
        residual: (n, width) float32.
        norms: of the branch before it is added, of the sum, and of what follows.
        stream: (n, width) float32, for the sum.
        following: (n, width) for that part's input; the stream itself, where that is the input.
    """
    width = residual.shape[1]
    block = triton.next_power_of_2(width)
    parts = [(None, None, 0.0, False) if norm is None else norm for norm in norms]
    _end[(len(branch),)](
        branch,
        residual,
        stream,
        following,
        *(part for norm in parts for part in norm[:3]),
        width,
        *(norm[3] for norm in parts),
        SAME=following is stream,
        BLOCK=block,
        **_options(block),
    )


def embed(
    tables: Sequence[tuple[Tensor, Tensor | None]],
    norms: tuple[NormParts, NormParts],
    *,
    stream: Tensor,
    following: Tensor,
) -> None:
    """Look up and add rows of tables, and normalise the sums. Numbers are not checked: loading checks the vocabulary.

    Args:
        tables: one to three, (n, width) float32, each with the rows' numbers, (tokens,) int64; None for the first row.
        norms: of the sums, and of what follows.
        stream: (tokens, width) float32, for the first norm's result.
        following: as for `end`.
    """
    width = stream.shape[1]
    block = triton.next_power_of_2(width)
    parts = [(None, None, 0.0, False) if norm is None else norm for norm in norms]
    lookups = [*tables, *[(None, None)] * (3 - len(tables))]
    _embed[(len(stream),)](
        *(part for lookup in lookups for part in lookup),
        stream,
        following,
        *(part for norm in parts for part in norm[:3]),
        width,
        *(norm[3] for norm in parts),
        SAME=following is stream,
        BLOCK=block,
        **_options(block),
    )


def gate(rows: Tensor, activation: str) -> Tensor:
    """`packed.activations.gate`: (n, 2 x inner) to (n, inner)."""
    inner = rows.shape[1] // 2
    output, block = rows.new_empty(len(rows), inner), min(_GATED, triton.next_power_of_2(inner))
    grid = len(rows), triton.cdiv(inner, block)
    _gate[grid](rows, output, inner, ACTIVATION=_ACTIVATIONS[activation], BLOCK=block, **_options(block))
    return output


def prepare(heads: Tensor, norm: NormParts, turns: Tensor | None) -> None:
    """Normalise queries or keys, turn them, or both, in place.

    Args:
        heads: (tokens, heads, width), of even width; the numbers of a head lie side by side.
        norm: of each head.
        turns: (tokens, 1, pairs) complex64; a head's numbers beyond these pairs do not turn.
    """
    tokens, count, width = heads.shape
    numbers, pairs = triton.next_power_of_2(count), triton.next_power_of_2(width // 2)
    weight, bias, epsilon, centred = norm or (None, None, 0.0, False)
    _prepare[(tokens,)](
        heads,
        heads.stride(0),
        heads.stride(1),
        weight,
        bias,
        epsilon,
        None if turns is None else torch.view_as_real(turns),
        0 if turns is None else turns.shape[-1],
        count,
        width,
        CENTRED=centred,
        HEADS=numbers,
        PAIRS=pairs,
        **_options(2 * numbers * pairs),
    )


def _options(numbers: int) -> dict[str, Any]:
    """For a program of so many numbers: warps of 32 threads, each with about eight of them. Whether a product and a sum
    are one step is by default another thing in each release."""
    return {"num_warps": min(16, max(1, numbers // 256)), "enable_fp_fusion": True}


@triton.jit
def _normalise(values, mask, columns, weight, bias, epsilon, width, CENTRED: tl.constexpr):  # noqa: N803
    """A row, with zeros where it has no columns."""
    if CENTRED:
        values = tl.where(mask, values - tl.sum(values, 0) / width, 0.0)
    values *= tl.rsqrt(tl.sum(values * values, 0) / width + epsilon)
    values *= tl.load(weight + columns, mask=mask, other=0.0)
    if bias is not None:
        values += tl.load(bias + columns, mask=mask, other=0.0)
    return values


@triton.jit
def _store(
    values,
    mask,
    columns,
    start,
    stream,
    following,
    sum_weight,
    sum_bias,
    sum_epsilon,
    next_weight,
    next_bias,
    next_epsilon,
    width,
    OF_SUM: tl.constexpr,  # noqa: N803
    FOLLOWING: tl.constexpr,  # noqa: N803
    SAME: tl.constexpr,  # noqa: N803
):
    """Write a row of the residual stream, normalised, and the next part's input that is made of it."""
    if sum_weight is not None:
        values = _normalise(values, mask, columns, sum_weight, sum_bias, sum_epsilon, width, OF_SUM)
    tl.store(stream + start + columns, values, mask=mask)
    if not SAME:
        if next_weight is not None:
            values = _normalise(values, mask, columns, next_weight, next_bias, next_epsilon, width, FOLLOWING)
        tl.store(following + start + columns, values.to(following.dtype.element_ty), mask=mask)


@triton.jit
def _end(
    branch,  # (n, width) in half precision
    residual,  # (n, width) float32
    stream,  # (n, width) float32, written
    following,  # (n, width), written: the next part's input
    branch_weight,
    branch_bias,
    branch_epsilon,
    sum_weight,
    sum_bias,
    sum_epsilon,
    next_weight,
    next_bias,
    next_epsilon,
    width,
    BRANCH: tl.constexpr,  # noqa: N803 - whether this norm is layer normalisation
    OF_SUM: tl.constexpr,  # noqa: N803
    FOLLOWING: tl.constexpr,  # noqa: N803
    SAME: tl.constexpr,  # noqa: N803 - whether the input is the stream
    BLOCK: tl.constexpr,  # noqa: N803
):
    start, columns = tl.program_id(0).to(tl.int64) * width, tl.arange(0, BLOCK)
    mask = columns < width
    values = tl.load(branch + start + columns, mask=mask, other=0.0).to(tl.float32)
    if branch_weight is not None:
        values = _normalise(values, mask, columns, branch_weight, branch_bias, branch_epsilon, width, BRANCH)
    values += tl.load(residual + start + columns, mask=mask, other=0.0)
    _store(
        values,
        mask,
        columns,
        start,
        stream,
        following,
        sum_weight,
        sum_bias,
        sum_epsilon,
        next_weight,
        next_bias,
        next_epsilon,
        width,
        OF_SUM,
        FOLLOWING,
        SAME,
    )


@triton.jit
def _look_up(table, numbers, token, columns, mask, width):
    """A row of a table."""
    row = 0
    if numbers is not None:
        row = tl.load(numbers + token)
    return tl.load(table + row * width + columns, mask=mask, other=0.0)


@triton.jit
def _embed(
    first,  # (n, width) float32, like the other tables
    of_first,  # (tokens,) int64
    second,
    of_second,
    third,
    of_third,
    stream,  # (tokens, width) float32, written
    following,  # (tokens, width), written: the first part's input
    sum_weight,
    sum_bias,
    sum_epsilon,
    next_weight,
    next_bias,
    next_epsilon,
    width,
    OF_SUM: tl.constexpr,  # noqa: N803 - whether this norm is layer normalisation
    FOLLOWING: tl.constexpr,  # noqa: N803
    SAME: tl.constexpr,  # noqa: N803 - whether the input is the stream
    BLOCK: tl.constexpr,  # noqa: N803
):
    token, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    mask = columns < width
    values = _look_up(first, of_first, token, columns, mask, width)
    if second is not None:
        values += _look_up(second, of_second, token, columns, mask, width)
    if third is not None:
        values += _look_up(third, of_third, token, columns, mask, width)
    _store(
        values,
        mask,
        columns,
        token * width,
        stream,
        following,
        sum_weight,
        sum_bias,
        sum_epsilon,
        next_weight,
        next_bias,
        next_epsilon,
        width,
        OF_SUM,
        FOLLOWING,
        SAME,
    )


@triton.jit
def _activate(values, ACTIVATION: tl.constexpr):  # noqa: N803
    """One of `_ACTIVATIONS`, of float32."""
    if ACTIVATION == "gelu":
        values *= 0.5 * (1.0 + tl.erf(values * 0.7071067811865476))
    elif ACTIVATION == "silu":
        values *= tl.sigmoid(values)
    elif ACTIVATION == "relu":
        values = tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:  # the approximation by tanh: (1 + tanh(x)) / 2 is the logistic function of 2 x
        values *= tl.sigmoid(1.5957691216057308 * (values + 0.044715 * values * values * values))
    return values


@triton.jit
def _gate(
    rows,  # (n, 2 x inner)
    output,  # (n, inner), written
    inner,
    ACTIVATION: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < inner
    first = rows + 2 * row * inner + columns
    gates = tl.load(first, mask=mask, other=0.0).to(tl.float32)
    values = tl.load(first + inner, mask=mask, other=0.0).to(tl.float32)
    values *= _activate(gates, ACTIVATION)
    tl.store(output + row * inner + columns, values.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _prepare(
    heads,  # (tokens, count, width), changed
    token_stride,
    head_stride,
    weight,  # (width,)
    bias,
    epsilon,
    turns,  # (tokens, turned, 2) float32
    turned,
    count,
    width,
    CENTRED: tl.constexpr,  # noqa: N803
    HEADS: tl.constexpr,  # noqa: N803
    PAIRS: tl.constexpr,  # noqa: N803
):
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, 2 * PAIRS)[None, :]
    mask = (head < count) & (column < width)
    places = heads + token * token_stride + head * head_stride + column
    values = tl.load(places, mask=mask, other=0.0).to(tl.float32)
    if weight is not None:
        if CENTRED:
            values = tl.where(mask, values - (tl.sum(values, 1) / width)[:, None], 0.0)
        values *= tl.rsqrt(tl.sum(values * values, 1) / width + epsilon)[:, None]
        values *= tl.load(weight + column, mask=column < width, other=0.0)
        if bias is not None:
            values += tl.load(bias + column, mask=column < width, other=0.0)
    if turns is not None:
        pair = tl.arange(0, PAIRS)[None, :]
        real, imaginary = tl.split(tl.reshape(values, (HEADS, PAIRS, 2)))
        turn = turns + 2 * (token * turned + pair)
        cosine = tl.load(turn, mask=pair < turned, other=1.0)
        sine = tl.load(turn + 1, mask=pair < turned, other=0.0)
        values = tl.interleave(real * cosine - imaginary * sine, real * sine + imaginary * cosine)
    tl.store(places, values.to(heads.dtype.element_ty), mask=mask)


KERNELS: dict[str, Any] = {"end": _end, "embed": _embed, "gate": _gate, "prepare": _prepare}
"""For tests, which compile them for GPUs that are not there."""
