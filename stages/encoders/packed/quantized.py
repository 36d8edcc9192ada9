"""A packed pass whose products are of 8-bit integers: ``precision=int8``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...types import TokenIds
from .forward import PackedForward
from .linear import Linear, Tensor, padded_rows
from .linear_rounded import FEW_ROWS, ROUNDED_ROWS, Int8Linear

COLUMNS_APART = (0, 1, 2, 4, 6, 8, 11, 14)
"""Numbers of columns that may be multiplied in float32. Attention's output often gains by none, others by some."""
_WIDER = 1.1  # so many times as far may rows reach, for fewer columns apart


def quantize(forward: PackedForward, sequences: Sequence[TokenIds]) -> None:
    """Let a pass in float32 multiply by `Int8Linear`, where a product is of all tokens.

    What a last layer computes for one token a text stays in float32, and so do embeddings and poolers: they take little
    time. Everything between the products stays so, too.

    Args:
        forward: The pass, which is changed.
        sequences: Some that are like those to come. Columns that are largest in them are multiplied apart, as long as
            that leaves the others notably finer units.

    Raises:
        ValueError: they have so few tokens that products of all tokens look like those of one token a sequence.
    """
    most = padded_rows(len(sequences))
    if sum(map(len, sequences)) <= most:
        raise ValueError(f"{len(sequences)} sequences of {sum(map(len, sequences))} tokens are too few to quantize by")
    seen: dict[int, _Observed] = {}

    def observe(linear: Linear) -> Linear:
        return seen.setdefault(id(linear), _Observed(linear))

    plain = forward.layers
    forward.layers = [_with_linears(layer, observe) for layer in plain]
    with torch.inference_mode():
        forward(sequences)
        for observed in seen.values():
            observed.rank_columns()
        forward(sequences)

    @functools.cache
    def rounded(number: int) -> Linear:
        observed = seen[number]
        if observed.rows <= most:
            return observed.linear
        weight, bias = observed.linear.plain()
        return Int8Linear(weight, bias, min(observed.rows, ROUNDED_ROWS), observed.apart())

    forward.layers = [_with_linears(layer, lambda linear: rounded(id(linear))) for layer in plain]


class _Observed(Linear):
    """A linear layer that notes how many rows it is given at most and, in a first pass, the size of each column's
    largest number; in a second one, how far the rows reach without the columns that are largest."""

    def __init__(self, linear: Linear) -> None:
        self.linear, self.rows = linear, 0
        self._largest, self._ranked = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        self._squares = torch.zeros(len(COLUMNS_APART), dtype=torch.float64)  # of ranges, summed over the rows

    def __call__(self, rows: Tensor) -> Tensor:
        self._note(rows)
        return self.linear(rows)

    def gelu(self, rows: Tensor) -> Tensor:
        self._note(rows)
        return self.linear.gelu(rows)

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        self._note(rows)
        return self.linear.plus(rows, residual)

    def rank_columns(self) -> None:
        """End the first pass."""
        self._ranked = self._largest.topk(min(COLUMNS_APART[-1], len(self._largest))).indices

    def apart(self) -> Tensor:
        """(columns,) int64: the fewest without which rows reach about as far as without all."""
        enough = self._squares <= _WIDER**2 * self._squares[-1]
        return self._ranked[: COLUMNS_APART[int(enough.nonzero()[0])]].sort().values

    def _note(self, rows: Tensor) -> None:
        self.rows = max(self.rows, len(rows))
        if not len(self._ranked):
            largest = rows.abs().amax(dim=0)
            self._largest = torch.maximum(self._largest, largest) if len(self._largest) else largest
            return
        for place, count in enumerate(COLUMNS_APART):
            together = rows.index_fill(1, self._ranked[:count], 0)
            ranges = together.amax(dim=1) - together.amin(dim=1)
            self._squares[place] += ranges.double().square().sum()


def _with_linears(part: Any, change: Callable[[Linear], Linear]) -> Any:
    """A part of a pass, in which another linear layer stands in the place of each."""
    if isinstance(part, Linear):
        return change(part)
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.init}
    changed = {name: made for name, value in fields.items() if (made := _with_linears(value, change)) is not value}
    if any(isinstance(linear, Int8Linear) and linear.in_few_rows for linear in changed.values()):
        few = {"together": FEW_ROWS, "chunk_rows": FEW_ROWS}
        changed |= {name: rows for name, rows in few.items() if name in fields}
    return dataclasses.replace(part, **changed) if changed else part
