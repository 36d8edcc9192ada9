"""Linear layers for a CPU whose weights are laid out once, by the operators that torch's own compiler uses (inductor,
with freezing)."""

from __future__ import annotations

import torch

from ...devices import cpu_capabilities
from .linear import Linear, Tensor
from .linear_int8 import Int8SplitLinear, products_are_exact


class MklLinear(Linear):
    """MKL in float32: the weight is laid out for one number of rows, and kept as it is for the other numbers."""

    def __init__(self, weight: Tensor, bias: Tensor, rows: int) -> None:
        super().__init__(weight, bias)
        self._rows = rows
        self._laid_out: Tensor = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        self._biased = bias  # not padded: outputs without a bias need not be touched

    def __call__(self, rows: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkl._mkl_linear(rows, self._laid_out, self._weight, None, self._rows)
        # MKL would write a bias to the whole result first, and read it again in the product.
        if len(self._biased):
            output[:, : len(self._biased)] += self._biased
        return output

    def plain(self) -> tuple[Tensor, Tensor]:
        return self._weight, self._biased


class OneDnnLinear(Linear):
    """oneDNN: the weight is laid out once, for about so many rows."""

    def __init__(self, weight: Tensor, bias: Tensor, rows: int) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight, rows), bias)
        # GELU within the product pays on an AMD EPYC. With AMX, torch's own pass over the fresh result takes less time.
        self._fuses_gelu = not _made_by_intel()

    def __call__(self, rows: Tensor) -> Tensor:
        return self._product(rows, "none")

    def plain(self) -> tuple[Tensor, Tensor]:
        weight, bias = super().plain()
        return weight.to_dense(), bias

    def gelu(self, rows: Tensor) -> Tensor:
        return self._product(rows, "gelu") if self._fuses_gelu else super().gelu(rows)

    def _product(self, rows: Tensor, activation: str) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, activation, [], "none")
        return output


def make_linear(weight: Tensor, bias: Tensor, *, rows: int) -> Linear:
    """The fastest linear layer that this machine has for `Linear`'s weight and bias, for about so many rows at once.

    In float32 that is MKL on Intel's processors, and oneDNN elsewhere: on AMD EPYCs MKL takes as long as oneDNN, or up
    to 1.2 times as long. With AMX it is `Int8SplitLinear`, where the product is large enough to win back the time of
    splitting. (All by ``bench/products.py``.) The processor decides, not a trial: one machine always gets the same
    bits.
    """
    weight = weight.contiguous()
    single = weight.dtype == torch.float32
    if single and _split_pays(len(weight), weight.shape[1], rows):
        return Int8SplitLinear(weight, bias, rows)
    if single and _made_by_intel() and _has("mkl", "_mkl_linear"):
        return MklLinear(weight, bias, rows)
    if _has("mkldnn", "_linear_pointwise") and _onednn_multiplies(weight.dtype):
        return OneDnnLinear(weight, bias, rows)
    return Linear(weight, bias)


def _made_by_intel() -> bool:
    return "Intel" in str(cpu_capabilities().get("cpu_name"))


def _split_pays(out: int, width: int, rows: int) -> bool:
    large = rows >= 256 and width >= 768 and out >= 3 * width
    return large and bool(cpu_capabilities().get("amx_int8")) and products_are_exact()


def _has(library: str, operator: str) -> bool:
    return getattr(torch.backends, library).is_available() and hasattr(getattr(torch.ops, library), operator)


def _onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out weights of this dtype here: in half precision it needs AVX-512 or better."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype != torch.float16 or bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
