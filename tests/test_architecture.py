"""The rooms of the house: who may import whom. A change that breaks one of these rules is a change of design.

The rules are those of CONTRIBUTING.md, and hold for modules that are not written yet. ``python tests/imports.py`` shows
the graph that they are tested on.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from imports import circles, imported, module_graph, modules, room, room_graph

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "h5py", "pyarrow", "numpy", "huggingface_hub", "safetensors"}
MODULES, GRAPH = modules(ROOT), module_graph(ROOT)
FOLDERS = {f"stages.{path.parent.name}" for path in ROOT.glob("stages/*/__init__.py")}
COMMANDS = {name for name in GRAPH["cli"] if name.count(".") == 1 and {room(other) for other in GRAPH[name]} & FOLDERS}
"""A command is a module of ``stages/`` that the command line imports, and that is built from folders."""
MAY_IMPORT: dict[str, set[str]] = {
    "stages.tables": set(),
    "stages.encoders": set(),
    "stages.heads": set(),
    "stages.extraction": {"stages.tables", "stages.encoders"},
    "stages.splits": {"stages.tables", "stages.heads.dataset", "stages.heads.dims"},
    "stages.runs": {"stages.heads"},
    "stages.sweeps": {"stages.heads", "stages.splits", "stages.runs"},
    "stages.pages": {"stages.heads", "stages.runs"},
    "stages.exporters": {"stages.encoders", "stages.heads"},
    "stages.baseline": {"stages.encoders", "stages.heads", "stages.splits", "stages.runs"},
}
"""Beside themselves, the shared files and the cache."""


def libraries(name: str) -> set[str]:
    """The top-level names that a module imports."""
    return {other.split(".")[0] for other in imported(name, MODULES[name])}


def layer(name: str) -> int:
    """The floor of a module: cache, shared files, folders, what is built from folders, commands, command line."""
    if not name.startswith("stages."):
        return 0 if room(name) == "cache" else 5
    if room(name) in FOLDERS:
        return 2
    if not {room(other) for other in GRAPH[name]} & FOLDERS:
        return 1
    return 4 if name in COMMANDS else 3


def test_nothing_imports_in_a_circle() -> None:
    assert not circles(GRAPH)
    assert not circles(room_graph(GRAPH))


@pytest.mark.parametrize("name", GRAPH)
def test_imports_go_down(name: str) -> None:
    above = {other for other in GRAPH[name] if layer(other) > layer(name)}
    assert not above
    if name == "stages.speedup":  # measures both stages: it hands their commands to the baseline
        assert GRAPH[name] & COMMANDS == {"stages.extract", "stages.train_head"}
    elif name in COMMANDS:
        assert not GRAPH[name] & COMMANDS, "what two commands share belongs to a folder"


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    assert folder in MAY_IMPORT, "a new folder: write here and in CONTRIBUTING.md what it may import"
    allowed = MAY_IMPORT[folder] | {folder}
    for name in (name for name in GRAPH if room(name) == folder):
        others = {other for other in GRAPH[name] if room(other) in FOLDERS}
        assert not {other for other in others if not allowed & {other, room(other)}}, name


@pytest.mark.parametrize("name", GRAPH)
def test_each_library_is_known_where_it_may_be(name: str) -> None:
    known, place = libraries(name), room(name)
    if place in ("cli", "options", "terminal", "__main__", "__init__", "stopping"):
        assert not known & HEAVY
    else:
        assert not known & {"typer", "rich"}
    if place == "cache":
        assert not known & {"torch", "transformers"}
    if place == "stages.heads":
        assert not known & {"pathlib", "json", "h5py", "pyarrow", "safetensors", "transformers"}
    if name not in ("stages.encoders.hf", "stages.baseline.program") and place != "stages.exporters":
        assert "transformers" not in known
    if name != "stages.baseline.report":
        assert "matplotlib" not in known
    if name != "stages.pages.figures":
        assert "plotly" not in known
    if name != "stages.ray_pool":
        assert "ray" not in known
    if name != "stages.tables.remote":
        assert "fsspec" not in known


def test_the_program_that_is_measured_against_is_reached_by_its_command_alone() -> None:
    users = {name for name in GRAPH if "stages.baseline" in {room(other) for other in GRAPH[name]}}
    assert {name for name in users if room(name) != "stages.baseline"} <= {
        "stages.speedup",
        "stages.inspect",
        "terminal",
    }


def test_both_ways_of_loading_build_the_same_encoder() -> None:
    for name in ("stages.encoders.hf", "stages.encoders.fast_load"):
        assert "stages.encoders.encoder" in GRAPH[name]
        assert name in GRAPH["stages.encoders.session"]
        assert name not in GRAPH["stages.encoders.encoder"]


def test_packages_are_empty_and_installed() -> None:
    packages = [path.parent for path in (*ROOT.glob("cache/**/__init__.py"), *ROOT.glob("stages/**/__init__.py"))]
    for package in packages:
        if package.name not in ("stages", "cache"):  # whose docstrings are the overviews
            assert (package / "__init__.py").read_text(encoding="utf-8") == ""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(
        ["headstart", *(".".join(["headstart", *p.relative_to(ROOT).parts]) for p in packages)]
    )


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


def test_workers_of_a_sweep_load_no_transformers_and_a_sweep_without_ray_nothing_of_it() -> None:
    assert not loaded_by("from headstart.stages.sweeps import on_ray") & {"transformers", "pyarrow", "ray"}
    code = (
        "import headstart, sys; headstart.sweep; print(*(name.rpartition('.')[2] for name in sys.modules)); sys.exit()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"ray", "ray_pool", "on_ray", "job_queue"} & set(done.stdout.split())


def test_a_cache_is_opened_without_torch() -> None:
    loaded = loaded_by("import headstart; headstart.open_cache; from headstart.stages.inspect import inspect_path")
    assert not loaded & {"torch", "transformers", "pyarrow"}


def test_a_table_that_is_none_is_refused_before_torch_is_loaded() -> None:
    code = "import sys; sys.argv = ['headstart', 'extract', 'x.csv', '--out', 'x.h5', '--encoder', 'x', '--quiet']\n"
    loaded = loaded_by(code + "from headstart.__main__ import run\nassert run() == 2")
    assert not loaded & {"torch", "transformers"}
    assert not {"rich", "matplotlib"} & loaded  # what a quiet run has no use for


def test_shards_without_a_store_load_no_fsspec() -> None:
    code = (
        "from headstart.stages.extraction import shard_store, sharded, shards; from headstart.stages.join import join"
    )
    assert not loaded_by(code) & {"fsspec", "s3fs"}


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['headstart', 'extract', '--help']\nfrom headstart.__main__ import run\nrun()"
    assert not loaded_by(code) & HEAVY
