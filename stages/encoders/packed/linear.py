"""A linear layer with frozen weights, as torch has it; and how many rows suit the faster ones."""

from __future__ import annotations

import torch
from torch.nn.functional import linear, pad

Tensor = torch.Tensor
SHAPE_ROWS = 64
"""Rows are rounded up to a multiple of this. oneDNN compiles code for each new number of rows, which can take longer
than the product itself. A full batch nearly fills such a multiple: see `compose_batches`."""


class Linear:
    """A weight (out, in) and a bias, for rows (n, in) of the weight's dtype; results are (n, out) of that dtype.

    The bias is (out,), or shorter: then it belongs to the first outputs alone. It may be of no outputs.
    """

    _bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._bias = pad(bias, (0, len(weight) - len(bias))) if len(bias) else None
        self._weight = weight

    def __call__(self, rows: Tensor) -> Tensor:
        """The product plus the bias, as a new tensor."""
        return linear(rows, self._weight, self._bias)

    def plain(self) -> tuple[Tensor, Tensor]:
        """The weight as it was given, and the bias, of no outputs or of all; of a layer in float32."""
        return self._weight, torch.empty(0) if self._bias is None else self._bias

    def gelu(self, rows: Tensor) -> Tensor:
        """The exact GELU (by erf) of the product plus the bias."""
        output: Tensor = torch.ops.aten.gelu_(self(rows))
        return output

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        """The product plus the bias plus a residual (n, out), in the residual's dtype."""
        output = self(rows)
        return output.add_(residual) if output.dtype == residual.dtype else residual + output


def padded_rows(rows: int) -> int:
    """The next multiple of `SHAPE_ROWS`; of a few rows, as of one short text, the next quarter of it."""
    step = SHAPE_ROWS if rows > SHAPE_ROWS else SHAPE_ROWS // 4
    return -(-rows // step) * step
