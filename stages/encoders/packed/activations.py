"""Activations of feed-forwards, by the names that config.json has for them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.nn.functional import gelu, relu, silu

Tensor = torch.Tensor
_gelu_tanh = functools.partial(gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "silu": silu,
    "swish": silu,
    "relu": relu,
}


def gate(rows: Tensor, activation: str) -> Tensor:
    """(n, 2 x inner) to (n, inner): the first half, activated, times the second (Shazeer, GLU variants, 2020)."""
    gates, values = rows.chunk(2, dim=1)
    return ACTIVATIONS[activation](gates).mul_(values)
