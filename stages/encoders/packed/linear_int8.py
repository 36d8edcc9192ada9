"""A float32 linear layer by products of 8-bit integers."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.functional import pad

from .linear import Linear, Tensor

COLUMNS_APART = 15  # that `Int8SplitLinear` multiplies in float32 beside its digits; with the bias they are 16
ZERO_DIGIT = 128
SPLIT_ROWS = 512  # that are split into digits together: the intermediate results stay in the core's cache
_ZEROS = float(ZERO_DIGIT * (1 + 2**8 + 2**16))
_LARGEST_WHOLE = float(127 * 2**16 + 127 * 2**8)  # the largest number of three digits, less a margin for rounding


class Int8SplitLinear(Linear):
    """A float32 product on a CPU with a matrix unit for 8-bit integers (Intel's AMX): six products of the unit take
    less time than one in float32, and are about as exact. Where single numbers outweigh the rest of their row, of
    values or of weights, errors are several times those of float32 (see tests/encoders/test_linear.py).

    Every number is split into three signed digits of 8 bits, x = unit * (high + middle / 2^8 + low / 2^16), with one
    unit for a row, of values as of weights. A product of digits is a sum of whole numbers, and exact. Of the nine
    products, the six that weigh most are computed, as three: [high] by [high], [high, middle] by [middle, high], and
    [high, middle, low] by [low, middle, high]. The other three would add about what float32 rounds off. (Ozaki et al.,
    Error-free transformations of matrix multiplication, 2012; with 8-bit integers: Ootomo, Ozaki and Yokota, DGEMM on
    integer matrix multiplication unit, 2024, https://arxiv.org/abs/2306.11975.)

    A few columns of an encoder are far larger than the others, and would leave those few digits. So the largest columns
    of the given rows, on which a row's last bits then depend, are multiplied apart, in float32. (Dettmers et al.,
    LLM.int8(), 2022, https://arxiv.org/abs/2208.07339.) A weight takes 10 bytes a number.
    """

    def __init__(self, weight: Tensor, bias: Tensor, rows: int) -> None:
        out, width = weight.shape
        digits, unit = split(weight)
        high, middle, low = torch.split(digits.bitwise_xor(ZERO_DIGIT).view(torch.int8), width, dim=1)
        self._levels = [
            torch.ops.onednn.qlinear_prepack(torch.cat(parts, dim=1), [rows, len(parts) * width])
            for parts in ((high,), (middle, high), (low, middle, high))
        ]
        self._units, self._zeros = unit.view(out), torch.zeros(out, dtype=torch.int32)
        self._columns = torch.cat([weight.T, pad(bias, (0, out - len(bias)))[None]])  # (width + 1, out): the bias last

    def __call__(self, rows: Tensor) -> Tensor:
        width = rows.shape[1]
        if not len(rows):
            return rows.new_empty(0, len(self._units))
        sizes = torch.maximum(rows.amax(dim=0), -rows.amin(dim=0))
        apart = sizes.topk(min(COLUMNS_APART, width)).indices
        digits, unit = split(rows, apart)
        output = self._product(digits, 3)
        for level in (2, 1):  # the products that weigh most come last
            output = self._product(digits, level, plus=output)
        beside = torch.cat([rows.index_select(1, apart), rows.new_ones(len(rows), 1)], dim=1)
        columns = self._columns[torch.cat([apart, apart.new_tensor([width])])]
        return output.mul_(unit).addmm_(beside, columns)

    def plain(self) -> tuple[Tensor, Tensor]:
        return self._columns[:-1].T.contiguous(), self._columns[-1]

    def _product(self, digits: Tensor, level: int, *, plus: Tensor | None = None) -> Tensor:
        """The product of so many digits, in the weights' units, (n, out) float32, added to ``plus`` in place."""
        digits, weight = digits[:, : level * digits.shape[1] // 3], self._levels[level - 1]
        factors = (digits, 2.0 ** (8 - 8 * level), ZERO_DIGIT, weight, self._units, self._zeros)
        multiply = torch.ops.onednn.qlinear_pointwise
        if plus is None:
            output: Tensor = multiply.default(*factors, None, 1.0, 0, torch.float32, "none", [], "")
        else:
            output = multiply.binary(*factors, plus, None, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "")
        return output


def split(values: Tensor, apart: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Split (n, width) float32 numbers into digits; the columns ``apart`` count as 0.

    Returns the high digits, the middle and the low ones, (n, 3 * width) uint8 where `ZERO_DIGIT` stands for 0; and each
    row's unit, (n, 1) float32, which is not finite where a value is not.
    """
    count, width = values.shape
    digits, unit = torch.empty(count, 3 * width, dtype=torch.uint8), values.new_empty(count, 1)
    for start in range(0, count, SPLIT_ROWS):
        rows = slice(start, start + SPLIT_ROWS)
        whole = values[rows].abs().contiguous()  # its bytes are read below
        if apart is not None:
            whole.index_fill_(1, apart, 0)
        largest = whole.amax(dim=1, keepdim=True).clamp_min_(1e-30)  # so that the quotient below stays finite
        unit[rows] = largest * (2**16 / _LARGEST_WHOLE)
        torch.mul(values[rows], _LARGEST_WHOLE / largest, out=whole)
        if apart is not None:
            whole.index_fill_(1, apart, 0)
        positive = whole.round_().add_(_ZEROS).int()  # below 2^24: the three lower bytes are the digits
        octets = positive.view(torch.uint8).view(-1, width, 4)  # the lowest first
        for place, octet in enumerate((2, 1, 0)):
            digits[rows, place * width : (place + 1) * width] = octets[:, :, octet]
    return digits, unit


@functools.cache
def products_are_exact(weight: int = 127) -> bool:
    """Whether oneDNN multiplies 8-bit integers here exactly: one from 0 to 255, the other from -weight to ``weight``.

    Older instructions, to which ``ONEDNN_MAX_CPU_ISA`` can hold it, cut a sum of two products at 16 bits.
    """
    onednn: Any = torch.backends.mkldnn
    if not (onednn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        return False
    weights = torch.ops.onednn.qlinear_prepack(torch.full((64, 64), weight, dtype=torch.int8), [64, 64])
    factors = (torch.full((64, 64), 255, dtype=torch.uint8), 1.0, 0, weights, torch.ones(64), torch.zeros(64).int())
    product = torch.ops.onednn.qlinear_pointwise.default(*factors, None, 1.0, 0, torch.float32, "none", [], "")
    return bool((product == 255 * weight * 64).all())
