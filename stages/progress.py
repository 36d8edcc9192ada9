"""Events that a command sends while it works. It does not know who receives them."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Note:
    """Something that the user should know. It is sent once."""

    text: str


@dataclasses.dataclass(frozen=True)
class Step:
    """Progress in a phase of the work."""

    phase: str
    """Name of the phase, such as ``encoding``."""
    done: int
    total: int
    """Number of units; 0 if it is not known yet."""
    unit: str
    """Name of the units, such as ``rows``."""
    tokens: int = 0
    """Number of tokens that were encoded in this phase."""
    detail: str = ""
    """Other information, in a few words."""


class Action(enum.StrEnum):
    """What a command did to an output."""

    MADE = "made"
    """It was written, from the beginning or from the unfinished output of an earlier run."""
    CURRENT = "current"
    """It existed already, and nothing was done."""
    RELABELLED = "relabelled"
    """Its labels were replaced, and no feature was encoded."""
    REPAIRED = "repaired"
    """Its damaged parts were written again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command did to one output. It is the last event for that output."""

    command: str
    """Name of the command, such as ``extract``."""
    output: Path
    action: Action
    counts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Numbers for a log, such as ``rows`` or ``sequences_encoded``. They count this run only."""


Event = Note | Step | Outcome
Report = Callable[[Event], None]
"""Receives the events of a command."""


def without_repeats(report: Report) -> Report:
    """Report each note once, however often it is sent."""
    sent: set[Note] = set()

    def send(event: Event) -> None:
        if not (isinstance(event, Note) and event in sent):
            report(event)
        if isinstance(event, Note):
            sent.add(event)

    return send


def silent(event: Event) -> None:
    """Ignore an event."""
