"""How a stage tells what it is doing, without knowing who listens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Note:
    """Something that the user should know, said once."""

    text: str


@dataclasses.dataclass(frozen=True)
class Step:
    """How far a phase of the work has come."""

    phase: str
    """What is being done, such as ``encoding``."""
    done: int
    total: int
    """Units in all; 0 where that is not known yet."""
    unit: str
    """What is counted, such as ``rows``."""
    tokens: int = 0
    """Tokens that the encoder has read in this phase."""
    detail: str = ""
    """What else is worth a look, in a few words."""


Report = Callable[[Note | Step], None]
"""Where a stage sends its notes and steps."""


def silent(event: Note | Step) -> None:
    """Listen to nothing."""
