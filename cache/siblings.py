"""Names of the work files beside an output. FORMAT.md says what each of them is for."""

from __future__ import annotations

import itertools
from pathlib import Path


def partial_path(output: Path) -> Path:
    """Unfinished output, which gets the output's name when it is complete."""
    return _beside(output, "partial")


def new_path(output: Path) -> Path:
    """Scratch file for an output that is replaced in one step."""
    return _beside(output, "new")


def relabelled_path(cache: Path) -> Path:
    """Copy of a cache with other labels, which replaces it."""
    return _beside(cache, "relabelled")


def repaired_path(cache: Path) -> Path:
    """Copy of a cache whose damaged parts are written again, which replaces it."""
    return _beside(cache, "repaired")


def lock_path(output: Path) -> Path:
    """Lock file of an output."""
    return _beside(output, "lock")


def replaced_path(folder: Path) -> Path:
    """Old folder, moved aside while a new one gets its name. The name is hidden."""
    return folder.with_name(f".{folder.name}.old")


def superseded_path(cache: Path, number: int) -> Path:
    """Unfinished work on earlier rows of the table, whose features an update reuses; numbered from 1, oldest first."""
    return _beside(cache, f"earlier{number}")


def superseded_paths(cache: Path) -> list[Path]:
    """The superseded files that exist, oldest first. There are several if the table changed several times."""
    return list(itertools.takewhile(Path.exists, (superseded_path(cache, number) for number in itertools.count(1))))


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(f"{output.name}.{suffix}")
