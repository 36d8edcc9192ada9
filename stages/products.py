"""Products of rows with frozen weights, with what follows them folded in where the machine's library can.

On a CPU, oneDNN multiplies by weights that were laid out for it once, and adds the bias, the activation or the
residual while a tile of the result is still in the caches: a pass over memory less for each. The operators are those
that torch's own compiler (inductor, with freezing) puts in place of a linear layer. Where they are missing, the plain
ones do the same work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import gelu, linear

Tensor = torch.Tensor

SHAPE_ROWS = 64
"""oneDNN makes machine code for each new number of rows, which can take longer than the product itself. Rows are
rounded up to a multiple of this, so that a run meets few numbers. Batches are composed to fill such a number: what is
added to a full one is less than one short sequence."""


class Product:
    """A weight (out, in) and a bias (out,), for rows (n, in) of the weight's dtype; results are (n, out) of it."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._bias = bias
        self._weight = weight

    def __call__(self, rows: Tensor) -> Tensor:
        """The product and the bias."""
        return linear(rows, self._weight, self._bias)

    def gelu(self, rows: Tensor) -> Tensor:
        """The exact GELU (by erf) of the product and the bias."""
        return gelu(linear(rows, self._weight, self._bias))

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        """The product, the bias and a residual (n, out), in the residual's dtype."""
        return residual + linear(rows, self._weight, self._bias)


class FusedProduct(Product):
    """The same by oneDNN, on a CPU."""

    def __init__(self, weight: Tensor, bias: Tensor, rows: int) -> None:
        """Lay out the weight for products with about so many rows."""
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows), bias)
        self._call: Any = torch.ops.mkldnn._linear_pointwise

    def __call__(self, rows: Tensor) -> Tensor:
        found: Tensor = self._call(rows, self._weight, self._bias, "none", [], "none")
        return found

    def gelu(self, rows: Tensor) -> Tensor:
        # oneDNN's own GELU, fused, was measured to take longer than torch's over what the product has just written.
        found: Tensor = torch.ops.aten.gelu_(self(rows))
        return found

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        if residual.dtype != rows.dtype:
            return residual + self(rows)
        found: Tensor = self._call.binary(rows, residual, self._weight, self._bias, "add")
        return found


def make_product(weight: Tensor, bias: Tensor, *, rows: int) -> Product:
    """The fastest product there is here, for about so many rows at once."""
    fused = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and fused:  # type: ignore[no-untyped-call]
        return FusedProduct(weight, bias, rows)
    return Product(weight, bias)


def padded_rows(rows: int) -> int:
    """How many rows a product of so many should have: the next multiple of `SHAPE_ROWS`."""
    return -(-rows // SHAPE_ROWS) * SHAPE_ROWS
