"""What tests ask of the processor that they run on."""

from __future__ import annotations

import pytest
from headstart.stages.encoders.packed.linear_int8 import products_are_exact
from headstart.stages.encoders.packed.linear_rounded import int8_products

needs_digits = pytest.mark.skipif(
    not products_are_exact(), reason="this processor does not add up products of 8-bit integers exactly"
)
"""For what `Int8SplitLinear` computes. It is right wherever 8-bit products are, though it is fast with AMX alone."""
needs_int8 = pytest.mark.skipif(not int8_products(), reason="torch multiplies no 8-bit integers on this processor")
"""For ``precision=int8``."""
