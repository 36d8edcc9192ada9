"""How a stage tells what it is doing, without knowing who listens."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from pathlib import Path


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


class Action(enum.StrEnum):
    """What a command did to an output."""

    MADE = "made"
    """It was written, in whole or from what an earlier run had left."""
    CURRENT = "current"
    """It was there already, and nothing was done."""
    RELABELLED = "relabelled"
    """Its labels changed, and no feature."""
    REPAIRED = "repaired"
    """Damaged parts were written again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command did to one output. It is the last event of that output, and is sent once.

    Attributes:
        command: The command, such as ``extract``.
        output: What was written, or found.
        action: What was done to it.
        counts: Numbers of interest to a log, such as ``rows`` or ``sequences_encoded``; of this run alone.
    """

    command: str
    output: Path
    action: Action
    counts: Mapping[str, float] = dataclasses.field(default_factory=dict)


Event = Note | Step | Outcome
Report = Callable[[Event], None]
"""Where a stage sends its events."""


def silent(event: Event) -> None:
    """Listen to nothing."""
