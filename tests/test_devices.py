"""What is asked of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from headstart.stages.devices import cpu_capabilities


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
