"""What is packaged: the version, the lowest versions of the dependencies, and a README that an index can show."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import headstart
import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(name: str) -> dict[str, tuple[int, ...]]:
    """The versions of a file of constraints."""
    lines = re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return {package: tuple(map(int, found.split("."))) for package, found in lines}


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_the_lowest_versions_are_those_that_are_tested(requirement: str) -> None:
    package, lowest = requirement.split(">=")
    floor = tuple(map(int, lowest.split(".")))
    assert pins("constraints-oldest.txt")[package][: len(floor)] == floor
    assert pins("constraints.txt")[package] >= floor


def test_the_version_is_that_of_the_installation() -> None:
    assert headstart.__version__ == version("headstart") == PROJECT["version"]
    code = "import sys; before = set(sys.modules); import headstart; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "importlib.metadata" not in done.stdout.split(), "it is read when it is asked for"


def test_a_package_index_can_show_the_readme() -> None:
    """An index shows no picture of a relative path."""
    assert "![" not in (ROOT / "README.md").read_text(encoding="utf-8")
