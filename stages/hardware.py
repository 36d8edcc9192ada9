"""What a processor has units for, told without torch, which takes a second to load."""

from __future__ import annotations

import sys
from pathlib import Path

from .settings import Precision

_GPUS = ("nvidia*", "dxg", "kfd", "accel*")
"""Devices of Linux by which torch finds a GPU."""


def has_no_gpu() -> bool:
    """Whether it is sure that torch would find no GPU here; if not, torch is asked."""
    return sys.platform == "linux" and not any(next(Path("/dev").glob(name), None) for name in _GPUS)


def as_asked(precision: Precision) -> tuple[Precision, str]:
    """A precision that a user named, and why."""
    return precision, "as asked for"


def cpu_precision() -> tuple[Precision, str]:
    """The precision that suits this processor, and why."""
    units = [unit for unit in ("amx_bf16", "avx512_bf16", "bf16") if unit in _units()]
    if units:
        return Precision.BFLOAT16, f"this CPU has bfloat16 units ({units[0]})"
    return Precision.FLOAT32, "this CPU has no bfloat16 units"


def _units() -> set[str]:
    """The names of the processor's units, as Linux has them; elsewhere torch knows them under the same names."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value for key, _, value in (line.partition(":") for line in lines)}
    if listed := f"{fields.get('flags', '')} {fields.get('Features', '')}".split():
        return set(listed)
    import torch

    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {name for name, found in known.items() if found is True}
