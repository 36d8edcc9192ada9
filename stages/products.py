"""Products of rows with frozen weights: by weights that were laid out once for the library that multiplies.

The operators are those that torch's own compiler (inductor, with freezing) puts in place of a linear layer. Where they
are missing, the plain ones do the same work.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear, pad

Tensor = torch.Tensor

SHAPE_ROWS = 64
"""oneDNN makes machine code for each new number of rows, which can take longer than the product itself. Rows are
rounded up to a multiple of this, so that a run meets few numbers. Batches are composed to fill such a number: what is
added to a full one is less than one short sequence."""


class Product:
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


class MklProduct(Product):
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


class OneDnnProduct(Product):
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


def make_product(weight: Tensor, bias: Tensor, *, rows: int) -> Product:
    """The fastest product there is here, for so many rows at once.

    In float32, MKL on Intel's processors, and oneDNN elsewhere: MKL keeps its best code for its maker's, and takes 1.1
    to 1.2 times as long as oneDNN on an AMD EPYC (``bench/products.py``). The processor decides, not a trial, so the
    same machine always gets the same bits.
    """
    weight = weight.contiguous()
    on_cpu = weight.device.type == "cpu"
    if on_cpu and weight.dtype == torch.float32 and _made_by_intel() and _has("mkl", "_mkl_linear"):
        return MklProduct(weight, bias, rows)
    if on_cpu and _has("mkldnn", "_linear_pointwise"):
        return OneDnnProduct(weight, bias, rows)
    return Product(weight, bias)


def _made_by_intel() -> bool:
    return "Intel" in str(torch.cpu.get_capabilities().get("cpu_name"))


def _has(library: str, operator: str) -> bool:
    return getattr(torch.backends, library).is_available() and hasattr(getattr(torch.ops, library), operator)


def padded_rows(rows: int) -> int:
    """How many rows a product of so many should have: the next multiple of `SHAPE_ROWS`."""
    return -(-rows // SHAPE_ROWS) * SHAPE_ROWS
