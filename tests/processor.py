"""What tests ask of the processor that they run on."""

from __future__ import annotations

import pytest
from headstart.stages.encoders.packed.linear import multiplies_octets

needs_digits = pytest.mark.skipif(
    not multiplies_octets(), reason="this processor does not add up products of 8-bit integers exactly"
)
"""For what `SplitProduct` computes. It is right wherever 8-bit products are, though it is fast with AMX alone."""
