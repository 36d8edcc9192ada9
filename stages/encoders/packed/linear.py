"""Products of rows with frozen weights: by weights that were laid out once for the library that multiplies.

The operators are those that torch's own compiler (inductor, with freezing) puts in place of a linear layer. Where they
are missing, the plain ones do the same work.
"""

from __future__ import annotations

import functools

import torch
from torch.nn.functional import linear, pad

from ... import devices

Tensor = torch.Tensor

SHAPE_ROWS = 64
"""oneDNN makes machine code for each new number of rows, which can take longer than the product itself. Rows are
rounded up to a multiple of this, so that a run meets few numbers. Batches are composed to fill such a number: what is
added to a full one is less than one short sequence."""

COLUMNS_APART = 15
"""How many columns `Int8SplitLinear` multiplies in float32 beside its digits; with the bias they are 16."""
ZERO_DIGIT = 128
SPLIT_ROWS = 512
"""Rows that are split into digits together: what is made of them on the way stays near the core."""
_ZEROS = float(ZERO_DIGIT * (1 + 2**8 + 2**16))
_LARGEST_WHOLE = float(127 * 2**16 + 127 * 2**8)
"""The largest number of three digits, less a margin for rounding."""


class Linear:
    """A weight (out, in) and a bias, for rows (n, in) of the weight's dtype; results are (n, out) of it.

    The bias is (out,), or shorter: then it is of the first outputs alone.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._bias = pad(bias, (0, len(weight) - len(bias)))
        self._weight = weight

    def __call__(self, rows: Tensor) -> Tensor:
        """The product and the bias, in memory of its own."""
        return linear(rows, self._weight, self._bias)

    def gelu(self, rows: Tensor) -> Tensor:
        """The exact GELU (by erf) of the product and the bias."""
        found: Tensor = torch.ops.aten.gelu_(self(rows))
        return found

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        """The product, the bias and a residual (n, out), in the residual's dtype."""
        found = self(rows)
        return found.add_(residual) if found.dtype == residual.dtype else residual + found


class MklLinear(Linear):
    """The same by MKL, in float32 on a CPU: the weight laid out once, where MKL by itself lays it out at every call.

    That layout is for one number of rows; for any other the plain product serves. The weight is held twice.
    """

    def __init__(self, weight: Tensor, bias: Tensor, rows: int) -> None:
        super().__init__(weight, bias)
        self._rows = rows
        self._laid_out: Tensor = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        self._bias = bias  # as it is: outputs that have none need not be touched

    def __call__(self, rows: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkl._mkl_linear(rows, self._laid_out, self._weight, None, self._rows)
        # A bias given to MKL is written to the whole of the result first, and read again by the product.
        found[:, : len(self._bias)] += self._bias
        return found


class OneDnnLinear(Linear):
    """The same by oneDNN, on a CPU: the weight laid out once, for about so many rows."""

    def __init__(self, weight: Tensor, bias: Tensor, rows: int) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight, rows), bias)
        # Over the product's own tiles it saves a pass over memory, which pays on an AMD EPYC. With AMX the
        # product is so fast that torch's pass over what was just written takes less.
        self._fuses_gelu = not _made_by_intel()

    def __call__(self, rows: Tensor) -> Tensor:
        return self._product(rows, "none")

    def gelu(self, rows: Tensor) -> Tensor:
        return self._product(rows, "gelu") if self._fuses_gelu else super().gelu(rows)

    def _product(self, rows: Tensor, then: str) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, then, [], "none")
        return found


class Int8SplitLinear(Linear):
    """The same in float32 on a CPU with a unit for matrices of 8-bit integers (Intel's AMX): six products by it take
    less time than one in float32, and together are about as exact. Where single numbers outweigh the rest of their row,
    of values or of weights, errors are several times those of float32 (tests/encoders/test_linear.py holds both).

    Every number is split into three signed digits of 8 bits, x = unit * (high + middle / 2^8 + low / 2^16), with one
    unit for a row, of values as of weights. A product of digits is a sum of whole numbers, and exact. Of the nine, the
    six that weigh most are taken, as three: [high] by [high], [high, middle] by [middle, high], and [high, middle, low]
    by [low, middle, high]. What the others would add is about what float32 rounds off. (Ozaki et al., Error-free
    transformations of matrix multiplication, 2012; with 8-bit integers: Ootomo, Ozaki and Yokota, DGEMM on integer
    matrix multiplication unit, 2024, https://arxiv.org/abs/2306.11975.)

    Encoders have columns far larger than the others, which would leave those few digits. So the largest columns of the
    rows given are multiplied apart, in float32. (Dettmers et al., LLM.int8(), 2022, https://arxiv.org/abs/2208.07339.)
    Which those are depends on all of the rows, and with them a row's last bits. A weight is held in 10 bytes a number.
    """

    def __init__(self, weight: Tensor, bias: Tensor, rows: int) -> None:
        out, width = weight.shape
        digits, unit = _split(weight)
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
        digits, unit = _split(rows, apart)
        found = self._product(digits, 3)
        for level in (2, 1):  # what weighs most comes last
            found = self._product(digits, level, plus=found)
        beside = torch.cat([rows.index_select(1, apart), rows.new_ones(len(rows), 1)], dim=1)
        columns = self._columns[torch.cat([apart, apart.new_tensor([width])])]
        return found.mul_(unit).addmm_(beside, columns)

    def _product(self, digits: Tensor, level: int, *, plus: Tensor | None = None) -> Tensor:
        """The product of so many digits, in the weights' units, (n, out) float32; ``plus`` is added, and used up."""
        digits, weight = digits[:, : level * digits.shape[1] // 3], self._levels[level - 1]
        factors = (digits, 2.0 ** (8 - 8 * level), ZERO_DIGIT, weight, self._units, self._zeros)
        multiply = torch.ops.onednn.qlinear_pointwise
        if plus is None:
            found: Tensor = multiply.default(*factors, None, 1.0, 0, torch.float32, "none", [], "")
        else:
            found = multiply.binary(*factors, plus, None, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "")
        return found


def _split(values: Tensor, apart: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Numbers to digits.

    Args:
        values: (n, width) float32.
        apart: Columns whose digits are to be 0, as if their values were.

    Returns:
        The high digits, the middle and the low ones, (n, 3 * width) uint8 where `ZERO_DIGIT` stands for 0; and each
        row's unit, (n, 1) float32, which is not finite where a value is not.
    """
    count, width = values.shape
    digits, unit = torch.empty(count, 3 * width, dtype=torch.uint8), values.new_empty(count, 1)
    for start in range(0, count, SPLIT_ROWS):
        rows = slice(start, start + SPLIT_ROWS)
        whole = values[rows].abs().contiguous()  # as its bytes are read below
        if apart is not None:
            whole.index_fill_(1, apart, 0)
        largest = whole.amax(dim=1, keepdim=True).clamp_min_(1e-30)  # so that what it divides stays finite
        unit[rows] = largest * (2**16 / _LARGEST_WHOLE)
        torch.mul(values[rows], _LARGEST_WHOLE / largest, out=whole)
        if apart is not None:
            whole.index_fill_(1, apart, 0)
        positive = whole.round_().add_(_ZEROS).int()  # below 2^24: the three lower bytes are the digits
        octets = positive.view(torch.uint8).view(-1, width, 4)  # the lowest first
        for place, octet in enumerate((2, 1, 0)):
            digits[rows, place * width : (place + 1) * width] = octets[:, :, octet]
    return digits, unit


def make_linear(weight: Tensor, bias: Tensor, *, rows: int) -> Linear:
    """The fastest product there is here, for so many rows at once.

    In float32, MKL on Intel's processors, and oneDNN elsewhere: MKL keeps its best code for its maker's, and takes 1.1
    to 1.2 times as long as oneDNN on an AMD EPYC. With AMX, digits of 8 bits where the product is large enough to win
    back what splitting costs. (All by ``bench/products.py``.) The processor decides, not a trial, so the same machine
    always gets the same bits.
    """
    weight = weight.contiguous()
    on_cpu = weight.device.type == "cpu"
    if on_cpu and weight.dtype == torch.float32 and _split_pays(len(weight), weight.shape[1], rows):
        return Int8SplitLinear(weight, bias, rows)
    if on_cpu and weight.dtype == torch.float32 and _made_by_intel() and _has("mkl", "_mkl_linear"):
        return MklLinear(weight, bias, rows)
    if on_cpu and _onednn_takes(weight.dtype):
        return OneDnnLinear(weight, bias, rows)
    return Linear(weight, bias)


def _onednn_takes(dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out weights of ``dtype`` here: half precision needs instructions that not every CPU has."""
    if not _has("mkldnn", "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def _made_by_intel() -> bool:
    return "Intel" in str(devices.cpu_capabilities().get("cpu_name"))


def _split_pays(out: int, width: int, rows: int) -> bool:
    large = rows >= 256 and width >= 768 and out >= 3 * width
    return large and bool(devices.cpu_capabilities().get("amx_int8")) and multiplies_octets()


@functools.cache
def multiplies_octets() -> bool:
    """Whether 8-bit integers are multiplied here, and exactly: older instructions, to which oneDNN can be held by
    ``ONEDNN_MAX_CPU_ISA``, cut a sum of two products at 16 bits."""
    if not (_has("mkldnn", "_linear_pointwise") and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        return False
    weight = torch.ops.onednn.qlinear_prepack(torch.full((64, 64), 127, dtype=torch.int8), [64, 64])
    factors = (torch.full((64, 64), 255, dtype=torch.uint8), 1.0, 0, weight, torch.ones(64), torch.zeros(64).int())
    found = torch.ops.onednn.qlinear_pointwise.default(*factors, None, 1.0, 0, torch.float32, "none", [], "")
    return bool((found == 255 * 127 * 64).all())


def _has(library: str, operator: str) -> bool:
    return getattr(torch.backends, library).is_available() and hasattr(getattr(torch.ops, library), operator)


def padded_rows(rows: int) -> int:
    """How many rows a product of so many should have: the next multiple of `SHAPE_ROWS`."""
    return -(-rows // SHAPE_ROWS) * SHAPE_ROWS
