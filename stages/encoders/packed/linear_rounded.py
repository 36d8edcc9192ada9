"""A linear layer whose weights and rows are rounded to 8-bit integers."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from ..native.loops import RoundedWeight, compiled_linear, fastest_loops
from .linear import Linear, Tensor
from .linear_int8 import products_are_exact

COLUMNS_APART = 14  # that are multiplied in float32; with the bias and the rows' smallest numbers they are 16
LARGEST_WEIGHT, LARGEST_STATE = 127, 255  # of a weight, or of the sum of two neighbours
ROUNDED_ROWS = 256
"""Rows that go through a layer together, whose intermediate results stay in the core's cache."""


FEW_ROWS = 192
"""The same, where a product takes no more time for few rows: what is made of them stays in the core's own cache."""


class Int8Linear(Linear):
    """A linear layer of rounded numbers: weights to 8 bits, by one unit for each output; and the rows that it is given
    to 8 bits between the row's smallest and largest number, by one unit for each row. Sums of products are exact.

    Processors without newer units (VNNI, AMX) add two products in 16 bits, and cut what does not fit. So an output's
    unit lets two weights that are neighbours add up to no more than one may be: then two products always fit. It is the
    same unit on every processor, for one identity should not mean two kinds of vectors.

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
        pairs = pad(together, (0, weight.shape[1] % 2)).view(len(weight), -1, 2)
        largest = torch.maximum(together.abs().amax(dim=1), pairs.sum(dim=2).abs().amax(dim=1))
        units = largest.clamp_min_(1e-30) / LARGEST_WEIGHT
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
    return products_are_exact(LARGEST_WEIGHT // 2 + 1)  # each is rounded to half of the sum, or one more
