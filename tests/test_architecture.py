"""The rooms of the house: who may know what. A change that breaks one of these is a change of design."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = {"batching", "split", "walk", "scaling", "batched", "lanes", "fit", "exact", "metrics", "calibration", "ranking"}
CORE |= {"accounting", "projection", "rungs", "units"}
HEAVY = {"torch", "transformers", "h5py", "pyarrow", "numpy", "huggingface_hub", "safetensors"}


def modules() -> list[Path]:
    return [*ROOT.glob("[a-z]*.py"), *ROOT.glob("cache/*.py"), *ROOT.glob("stages/*.py")]


def imports(path: Path) -> set[str]:
    """What a module imports, anywhere in it: top-level packages, and rooms of this one as ``.cache`` or ``.stages``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            in_root = node.level == (1 if path.parent == ROOT else 2)
            found.add(f".{module.split('.')[0]}" if in_root else module.split(".")[0] if not node.level else "")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_room_knows_only_what_it_may(path: Path) -> None:
    known, room = imports(path), path.parent.name
    if path.parent == ROOT:
        assert not known & HEAVY
    else:
        assert not known & {"typer", "rich", ".cli", ".terminal", ".stopping"}
    if room == "cache":
        assert not known & {"torch", "transformers", ".stages"}
    if room == "stages" and path.stem in CORE:
        assert not known & {"pathlib", "h5py", "json", "pyarrow", "safetensors"}
    if path.name not in ("pretrained.py", "baseline.py"):
        assert "transformers" not in known
    if path.name != "speedup_picture.py":
        assert "matplotlib" not in known


def test_the_program_that_is_measured_against_is_used_by_the_measurement_alone() -> None:
    """Nothing of the two stages may come to lean on it; and the measurement is reached from its command alone."""
    users = {path.stem for path in modules() if "baseline" in siblings(path)}
    assert users and all(name.startswith("speedup") for name in users)
    reaching = {path.stem for path in modules() if any(name == "speedup" for name in siblings(path))}
    assert reaching <= {"cli"}


def siblings(path: Path) -> set[str]:
    """The modules of ``stages/`` that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = (node.module or "").split(".")
            if path.parent.name == "stages" and node.level == 1:
                found |= {parts[0]} if parts[0] else {alias.name for alias in node.names}
            elif parts[0] == "stages":
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_stage_two_loads_no_transformers() -> None:
    names = ("train_head", "sweep", "load_head", "open_cache")
    loaded = loaded_by("import headstart; " + "; ".join(f"headstart.{name}" for name in names))
    assert "torch" in loaded
    assert not loaded & {"transformers", "tokenizers", "huggingface_hub", "pyarrow"}


def test_a_cache_is_opened_without_torch() -> None:
    assert not loaded_by("import headstart; headstart.open_cache") & {"torch", "transformers", "pyarrow"}


def test_a_table_that_is_none_is_refused_before_torch_is_loaded() -> None:
    code = "import sys; sys.argv = ['headstart', 'extract', 'x.csv', '--out', 'x.h5', '--encoder', 'x', '--quiet']\n"
    loaded = loaded_by(code + "from headstart.__main__ import run\nassert run() == 2")
    assert not loaded & {"torch", "transformers"}
    assert not {"rich", "matplotlib"} & loaded  # what a quiet run has no use for


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['headstart', 'extract', '--help']\nfrom headstart.__main__ import run\nrun()"
    assert not loaded_by(code) & HEAVY
