"""What tests ask of the processor that they run on."""

from __future__ import annotations

import pytest
import torch
from headstart.stages import products

needs_digits = pytest.mark.skipif(
    not products._has("mkldnn", "_linear_pointwise")
    or not {"avx512_vnni", "amx_int8"} & {name for name, has in torch.cpu.get_capabilities().items() if has},
    reason="this processor does not add up products of 8-bit integers exactly",
)
"""For what `SplitProduct` computes. It is right wherever 8-bit products are, though it is fast with AMX alone."""
