"""Which device to use, and what it has units for."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..cache.errors import SettingsError
from .hardware import as_asked, cpu_precision
from .settings import ForwardMode, Precision

DTYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT16: torch.float16}
_FEWEST, _MOST = 1024, 32768
"""Tokens in a batch on a GPU, which must be filled (these figures were not measured)."""
_BYTES, _SHARE = 64, 0.5
"""A batch takes at most this share of a GPU's free memory. Its tokens take so many bytes for each number of a state: in
float32 the states as a layer takes them and gives them back; in half precision queries, keys, values and the inner
states of a gated feed-forward (counted from shapes; ``bench/gpu.py`` measures it)."""
_OWN_TOKENS, _SHARED_TOKENS = 2048, 8192
"""On a CPU, where each core takes a batch of its own, as the packed pass has it, larger ones are no faster
(``bench/batches.py``). Where all cores share one, they meet at the end of each product, and batches of 2,048 take
longer than these in bfloat16 (``bench/batches.py --padded``)."""


def choose_device(name: str) -> torch.device:
    """Turn ``auto`` or a device's name into a device that is there; of GPUs, with its number.

    Raises:
        SettingsError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise SettingsError(f"device {name!r} is not supported; choose auto, cpu, cuda, cuda:1 or mps")
        torch.empty(0, device=device)
        if device.type == "cuda":
            if device.index is None:  # the current device is a thread's, and the result is for any thread
                device = torch.device("cuda", torch.cuda.current_device())
            torch.cuda.set_device(device)  # events and questions about the hardware are of the current one
    except (RuntimeError, AssertionError, NotImplementedError):
        raise SettingsError(f"device {name!r} cannot be used here: there is none; try `device=auto`") from None
    return device


def choose_precision(wanted: Precision, device: torch.device) -> tuple[Precision, str]:
    """Decide what to compute in, and say why.

    Half precision is taken only where the hardware multiplies matrices in it: on a CPU without such units,
    bfloat16 is emulated and several times slower than float32.

    Raises:
        SettingsError: the device has no such products.
    """
    if wanted is Precision.INT8 and device.type != "cpu":
        raise SettingsError(f"`precision=int8` is for CPUs, and this device is {device}; choose `device=cpu`")
    if wanted is not Precision.AUTO:
        return as_asked(wanted)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision.BFLOAT16, "this GPU has bfloat16 units"
        if torch.cuda.get_device_capability(device) >= (7, 0):
            return Precision.FLOAT16, "this GPU has float16 units, and none for bfloat16"
        return Precision.FLOAT32, "this GPU has no units for half precision"
    if device.type == "cpu":
        return cpu_precision()
    return Precision.FLOAT32, f"half precision was never tried on {device.type}"


def cpu_capabilities() -> Mapping[str, Any]:
    """What the processor has: ``cpu_name``, and units such as ``amx_int8`` by their names.

    torch says it by `torch.cpu.get_capabilities`, which older versions lack. There Linux says it, under the same names.
    """
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    units = f"{fields.get('flags', '')} {fields.get('Features', '')}".split()
    return {"cpu_name": fields.get("model name"), **dict.fromkeys(units, True)}


def default_batch_tokens(device: torch.device, path: ForwardMode, width: int) -> int:
    """Tokens in a batch that suit this kind of device, and how the encoder, of states of ``width``, runs on it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes next
        return gpu_batch_tokens(free + kept, width)
    return _OWN_TOKENS if device.type == "cpu" and path is ForwardMode.PACKED else _SHARED_TOKENS


def gpu_batch_tokens(free: int, width: int) -> int:
    """The largest power of two that fits into a share of the free memory, in bytes, within bounds.

    A power of two, for memory that differs a little should not give other batches.
    """
    fitting = int(free * _SHARE) // (_BYTES * width)
    return max(_FEWEST, min(_MOST, 1 << max(fitting, 1).bit_length() - 1))


def machine(device: torch.device) -> dict[str, Any]:
    """What a speed was measured on; ``device`` is its own name."""
    processor = cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(processor),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }
