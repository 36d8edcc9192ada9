"""A packed pass whose products are of 8-bit integers: ``precision=int8``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from ...types import TokenIds
from .forward import PackedForward
from .linear import Linear, Tensor, padded_rows
from .linear_int8 import products_are_exact

COLUMNS_APART = 14  # that are multiplied in float32; with the bias and the rows' smallest numbers they are 16
_LARGEST_WEIGHT, LARGEST_STATE = 127, 127
_ROWS = 512  # that are rounded together: the intermediate results stay in the core's cache


class Int8Linear(Linear):
    """A linear layer of rounded numbers: weights to 8 bits, by one unit for each output; and the rows that it is given
    to 7 bits between the row's smallest and largest number, by one unit for each row. Sums of products are exact.

    Rows have 7 bits on every processor, because two products of 7 by 8 bits fit into the 16 bits in which processors
    without newer units (VNNI, AMX) add them. With 8 bits on some of them, one identity would mean two kinds of vectors.

    A few columns of an encoder's states are far larger than the others, and would leave these few bits. They are
    multiplied apart, in float32. (Dettmers et al., LLM.int8(), 2022, https://arxiv.org/abs/2208.07339.) There they are
    found anew in each batch; here `quantize` has chosen them, so that neighbours decide nothing for a row. Its last
    bits in float32 may still depend on them, and where a number lies between two whole ones, such a bit decides which
    it becomes: `extraction.tolerance` allows for that.
    """

    def __init__(self, weight: Tensor, bias: Tensor, rows: int, apart: Tensor) -> None:
        """Lay out a weight (out, in) and a bias, as `Linear` takes them, for about ``rows`` rows; ``apart`` are int64
        numbers of columns."""
        out, width = weight.shape
        self._apart = apart
        together = weight.index_fill(1, apart, 0)
        units = together.abs().amax(dim=1).clamp_min_(1e-30) / _LARGEST_WEIGHT
        whole = (together / units[:, None]).round_()
        self._laid_out: Tensor = torch.ops.onednn.qlinear_prepack(whole.to(torch.int8), [rows, width])
        self._units, self._zeros = units, torch.zeros(out, dtype=torch.int32)
        smallest = whole.sum(dim=1, dtype=torch.float64).mul_(units).float()
        ending = torch.stack([smallest, pad(bias, (0, out - len(bias)))])
        self._columns = torch.cat([weight[:, apart].T, ending])  # (columns apart + 2, out)

    def __call__(self, rows: Tensor) -> Tensor:
        output, units = self._multiply(rows)
        return output.mul_(units)

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        output, units = self._multiply(rows)
        return torch.addcmul(residual, output, units, out=output)

    def _multiply(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of (n, in) float32: the result in units of its rows, (n, out), and these, (n, 1); float32.

        A row's unit is not finite where a number of the row is not.
        """
        output, units = rows.new_empty(len(rows), len(self._units)), rows.new_empty(len(rows), 1)
        for start in range(0, len(rows), _ROWS):
            some = slice(start, start + _ROWS)
            apart, together = rows[some].index_select(1, self._apart), rows[some].index_fill(1, self._apart, 0)
            smallest, largest = together.amin(dim=1, keepdim=True), together.amax(dim=1, keepdim=True)
            torch.sub(largest, smallest, out=units[some]).clamp_min_(1e-30).div_(LARGEST_STATE)
            scale = units[some].reciprocal()
            smallest *= scale
            whole = together.mul_(scale).add_(0.5 - smallest).to(torch.int8)  # rounds, as all are above 0
            beside = torch.cat([apart * scale, smallest, scale], dim=1)
            torch.mm(beside, self._columns, out=output[some])
            self._add_product(whole.view(torch.uint8), output[some])
        return output, units

    def _add_product(self, whole: Tensor, output: Tensor) -> None:
        factors = (whole, 1.0, 0, self._laid_out, self._units, self._zeros)
        result: tuple[Any, ...] = (output, None, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "")
        torch.ops.onednn.qlinear_pointwise.binary(*factors, *result)


def int8_products() -> bool:
    """Whether torch multiplies 8-bit integers here, and exactly."""
    return products_are_exact(LARGEST_STATE)


def quantize(forward: PackedForward, sequences: Sequence[TokenIds]) -> None:
    """Let a pass in float32 multiply by `Int8Linear`, where a product is of all tokens.

    What a last layer computes for one token a text stays in float32, and so do embeddings and poolers: they take little
    time. Everything between the products stays so, too.

    Args:
        forward: The pass, which is changed.
        sequences: Some that are like those to come: columns that are largest in them are multiplied apart.

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

    @functools.cache
    def rounded(number: int) -> Linear:
        observed = seen[number]
        if observed.rows <= most:
            return observed.linear
        weight, bias = observed.linear.plain()
        apart = observed.largest.topk(min(COLUMNS_APART, weight.shape[1])).indices.sort().values
        return Int8Linear(weight, bias, min(observed.rows, _ROWS), apart)

    forward.layers = [_with_linears(layer, lambda linear: rounded(id(linear))) for layer in plain]


class _Observed(Linear):
    """A linear layer that notes how many rows it is given at most, and the size of each column's largest number."""

    def __init__(self, linear: Linear) -> None:
        self.linear, self.rows = linear, 0
        self.largest = torch.zeros(0)

    def __call__(self, rows: Tensor) -> Tensor:
        self._note(rows)
        return self.linear(rows)

    def gelu(self, rows: Tensor) -> Tensor:
        self._note(rows)
        return self.linear.gelu(rows)

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        self._note(rows)
        return self.linear.plus(rows, residual)

    def _note(self, rows: Tensor) -> None:
        self.rows, largest = max(self.rows, len(rows)), rows.abs().amax(dim=0)
        self.largest = torch.maximum(self.largest, largest) if len(self.largest) else largest


def _with_linears(part: Any, change: Callable[[Linear], Linear]) -> Any:
    """A part of a pass, in which another linear layer stands in the place of each."""
    if isinstance(part, Linear):
        return change(part)
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.init}
    changed = {name: made for name, value in fields.items() if (made := _with_linears(value, change)) is not value}
    return dataclasses.replace(part, **changed) if changed else part
