"""What is known of the CPU with versions of torch that do not tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from headstart.stages import devices
from headstart.stages.devices import choose_precision, read_cpuinfo
from headstart.stages.settings import Precision

X86 = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 {}\n\nprocessor\t: 1\nmodel name\t: other\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd {}\n"


@pytest.mark.parametrize(
    ("text", "unit", "name"),
    [(X86, "amx_bf16", "Intel(R) Xeon(R)"), (X86, "avx512_bf16", "Intel(R) Xeon(R)"), (ARM, "bf16", None)],
)
def test_an_older_torch_leaves_the_cpu_to_linux(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, unit: str, name: str | None
) -> None:
    for flags, precision in ((unit, Precision.BFLOAT16), ("", Precision.FLOAT32)):
        path = tmp_path / f"cpuinfo{flags}"
        path.write_text(text.format(flags))
        capabilities = read_cpuinfo(str(path))
        assert capabilities["cpu_name"] == name
        monkeypatch.setattr(devices, "cpu_capabilities", lambda found=capabilities: found)
        assert choose_precision(Precision.AUTO, torch.device("cpu"))[0] is precision
        assert devices.describe(torch.device("cpu"))


def test_a_system_without_a_list_has_no_known_units(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(devices, "read_cpuinfo", lambda: read_cpuinfo(str(tmp_path / "none")))
    assert devices.cpu_capabilities() == {}
    assert choose_precision(Precision.AUTO, torch.device("cpu"))[0] is Precision.FLOAT32


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not tell")
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux alone has this list")
def test_linux_and_torch_agree_on_this_cpu() -> None:
    ours, theirs = read_cpuinfo(), torch.cpu.get_capabilities()
    for unit in ("amx_bf16", "avx512_bf16", "amx_int8", "avx2"):
        assert bool(ours.get(unit)) == bool(theirs.get(unit)), unit
    assert ("Intel" in str(ours["cpu_name"])) == ("Intel" in str(theirs["cpu_name"]))
