"""What is asked of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from headstart.stages.devices import choose_device, cpu_capabilities, default_batch_tokens, gpu_batch_tokens
from headstart.stages.settings import ForwardMode
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no Linux")
@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not say")
def test_linux_says_of_the_processor_what_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """For versions of torch that do not say it."""
    expected = cpu_capabilities()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    found = cpu_capabilities()
    for unit in ("amx_bf16", "amx_int8", "avx512_bf16", "avx2"):
        assert bool(found.get(unit)) == bool(expected.get(unit)), unit
    assert ("Intel" in str(found["cpu_name"])) == ("Intel" in str(expected["cpu_name"]))


def test_where_nothing_says_it_the_processor_has_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(Path, "read_text", lambda path: (_ for _ in ()).throw(OSError()))
    assert cpu_capabilities() == {}


@given(st.integers(0, 1 << 40), st.integers(1, 16384))
def test_a_batch_takes_a_share_of_a_gpus_free_memory_within_bounds(free: int, width: int) -> None:
    tokens = gpu_batch_tokens(free, width)
    assert 1024 <= tokens <= 32768 and tokens.bit_count() == 1
    assert tokens == 1024 or 64 * width * tokens <= free // 2
    assert tokens == 32768 or 64 * width * 2 * tokens > free // 2


@pytest.mark.parametrize(
    ("gib", "width", "tokens"), [(7, 768, 32768), (7, 4096, 8192), (70, 4096, 32768), (1, 768, 8192), (0, 768, 1024)]
)
def test_what_torch_keeps_for_later_counts_as_free(
    gib: int, width: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: (gib + 2) << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 << 30)
    assert default_batch_tokens(torch.device("cuda"), ForwardMode.PACKED, width) == tokens


def test_a_gpu_is_chosen_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own `set_device`, which takes no device without one."""
    current = [1]
    monkeypatch.setattr(torch._C, "_cuda_setDevice", current.append, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch, "empty", lambda *sizes, device: None)
    for name, number in (("auto", 1), ("cuda", 1), ("cuda:0", 0), ("cuda:3", 3), ("cuda", 3)):
        device = choose_device(name)
        assert (device.type, device.index, current[-1]) == ("cuda", number, number), name
