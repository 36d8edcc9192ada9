"""Events that a command sends while it works. It does not know who receives them."""

from __future__ import annotations

import dataclasses
import enum
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .units import plain


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

    def words(self, elapsed: float) -> str:
        """Return how far the phase is, ``elapsed`` seconds after its start: ``1,024 of 9,000 rows, 5,055 tokens/s``."""
        if not self.done:
            return ""
        text = f"{self.done:,} of {self.total:,} {self.unit}" if self.total else f"{self.done:,} {self.unit}"
        text += f", {self.tokens / elapsed:,.0f} tokens/s" if self.tokens and elapsed > 0 else ""
        return text + (f", {self.detail}" if self.detail else "")


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


class _NotebookLines:
    """Shows notes, and one line that tells how far the present phase is, if it takes a second or longer."""

    def __init__(self) -> None:
        self._phase, self._started, self._shown, self._cell = "", 0.0, 0.0, 0
        self._line: Any = None  # the display handle

    def __call__(self, event: Event, display: Callable[..., Any], cell: int) -> None:
        now = time.monotonic()
        if cell != self._cell:  # an error ended the one before
            self._phase, self._line, self._cell = "", None, cell
        if isinstance(event, Note):
            display({"text/plain": plain(event.text)}, raw=True)
        elif isinstance(event, Outcome):
            if self._line is not None:
                self._show(f"{event.command}: {event.action} {event.output}", display)
            self._phase, self._line = "", None
        elif event.phase != self._phase:
            self._phase, self._started, self._shown = event.phase, now, now
        elif now - self._shown >= 1:
            self._shown = now
            self._show(f"{event.phase}: {event.words(now - self._started)}", display)

    def _show(self, text: str, display: Callable[..., Any]) -> None:
        content = {"text/plain": plain(text)}
        if self._line is None:
            self._line = display(content, raw=True, display_id=True)
        else:
            self._line.update(content, raw=True)


_notebook_lines = _NotebookLines()


def in_notebooks(event: Event) -> None:
    """Show an event where code runs in a notebook, in the kernel of IPython. Elsewhere, ignore it."""
    ipython = sys.modules.get("IPython")
    if ipython and hasattr(shell := ipython.get_ipython(), "kernel"):
        from IPython.display import display

        _notebook_lines(event, display, shell.execution_count)
