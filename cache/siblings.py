"""Names of the work files beside an output. FORMAT.md says what each of them is for.

Every name ends in ``.headstart-`` and a word: nobody else's files do. An output that is a symbolic link stays one: its
work files lie beside the file or folder that it points to, which is replaced.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from .errors import OutputExistsError

_MOST_BYTES = 230
"""Of an output's name: those of its work files are longer, and file systems allow 255."""


def partial_path(output: Path) -> Path:
    """Unfinished output, which an interrupted run leaves for the next one."""
    return _beside(output, "partial")


def work_path(output: Path) -> Path:
    """Folder of what a run makes before it gets its name; see `workspace`."""
    return _beside(output, "work")


def lock_path(output: Path) -> Path:
    """Lock file of an output."""
    return _beside(output, "lock")


def plan_path(cache: Path) -> Path:
    """Folder of the plan by which a cache's shards are made."""
    return _beside(cache, "plan")


def shards_path(cache: Path) -> Path:
    """Folder of the shards of a joined cache. It stays, so it has no name of a work file."""
    cache = followed(cache)
    return cache.with_name(f"{cache.name}.shards")


def superseded_path(cache: Path, number: int) -> Path:
    """Unfinished work on earlier rows of the table, whose features an update reuses; numbered from 1, oldest first."""
    return _beside(cache, f"earlier{number}")


def superseded_paths(cache: Path) -> list[Path]:
    """The superseded files that exist, oldest first. There are several if the table changed several times."""
    return list(itertools.takewhile(os.path.lexists, (superseded_path(cache, number) for number in itertools.count(1))))


def followed(output: Path) -> Path:
    """What is written where this output is asked for: the target of a symbolic link, otherwise the output itself.

    Raises:
        OutputExistsError: the link leads to itself, or the name leaves no room for those of work files.
    """
    if len(os.fsencode(output.name)) > _MOST_BYTES:
        raise OutputExistsError(f"the name of {output} has more than {_MOST_BYTES} bytes; choose another `out`")
    if not output.is_symlink():
        return output
    target = Path(os.path.realpath(output))
    if target.is_symlink():
        raise OutputExistsError(f"{output} is a symbolic link that leads to itself; choose another `out`")
    return followed(target)


def _beside(output: Path, suffix: str) -> Path:
    output = followed(output)
    return output.with_name(f"{output.name}.headstart-{suffix}")
