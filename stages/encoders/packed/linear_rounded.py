"""A linear layer whose weights and rows are rounded to 8-bit integers."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from ..native.loops import RoundedWeight, compiled_linear, fastest_loops
from .linear import Linear, Tensor
from .linear_int8 import products_are_exact

COLUMNS_APART = 14  # that are multiplied in float32; with the bias and the rows' smallest numbers they are 16
_LARGEST_WEIGHT, LARGEST_STATE = 127, 127
ROUNDED_ROWS = 256
"""Rows that go through a layer together, whose intermediate results stay in the core's cache."""


FEW_ROWS = 192
"""The same, where a product takes no more time for few rows: what is made of them stays in the core's own cache."""


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
        together = weight.index_fill(1, apart, 0)
        units = together.abs().amax(dim=1).clamp_min_(1e-30) / _LARGEST_WEIGHT
        whole = (together / units[:, None]).round_()
        of_smallest = whole.sum(dim=1, dtype=torch.float64).mul_(units).float()
        ending = torch.stack([of_smallest, pad(bias, (0, len(weight) - len(bias)))])
        rounded = RoundedWeight(
            whole=whole.to(torch.int8),
            units=units,
            apart=apart,
            columns=torch.cat([weight[:, apart].T, ending]),
            levels=LARGEST_STATE,
        )
        fast = compiled_linear(rounded)
        self.in_few_rows = fast is not None
        self._compute = fast or _OneDnnLinear(rounded, rows)

    def __call__(self, rows: Tensor) -> Tensor:
        return self._compute(rows)

    def gelu(self, rows: Tensor) -> Tensor:
        return self._compute(rows, gelu=True)

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self._compute(rows, residual)


class _OneDnnLinear:
    """`CompiledLinear`'s result by oneDNN's product, with passes over memory before and after it."""

    def __init__(self, weight: RoundedWeight, rows: int) -> None:
        self._weight = weight
        self._laid_out: Tensor = torch.ops.onednn.qlinear_prepack(weight.whole, [rows, weight.whole.shape[1]])
        self._zeros = torch.zeros(len(weight.units), dtype=torch.int32)

    def __call__(self, rows: Tensor, residual: Tensor | None = None, *, gelu: bool = False) -> Tensor:
        output, loops = rows.new_empty(len(rows), len(self._zeros)), fastest_loops()
        for start in range(0, len(rows), ROUNDED_ROWS):
            part = slice(start, start + ROUNDED_ROWS)
            whole, units, beside = loops.round_rows(rows[part], self._weight)
            factors = (whole, 1.0, 0, self._laid_out, self._weight.units, self._zeros)
            sums = torch.ops.onednn.qlinear_pointwise.default(*factors, None, 1.0, 0, torch.float32, "none", [], "")
            added = None if residual is None else residual[part]
            loops.finish_rows(sums, units, beside, self._weight, residual=added, gelu=gelu, out=output[part])
        return output


def int8_products() -> bool:
    """Whether torch multiplies 8-bit integers here, and exactly."""
    return products_are_exact(LARGEST_STATE)
