"""The exceptions that headstart raises on purpose: one tree, so that the command line needs one rule.

Every message is one line that says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_SETTING = re.compile(r"`([a-z][a-z0-9_]*)(?:=([\w.]+))?`")


class HeadstartError(Exception):
    """Anything that can be foreseen to go wrong. On the command line: one line, exit code 1.

    A message names settings as Python does, in backticks: `out`, or `overwrite=True`. The command line spells them as
    its options.
    """

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings that the message names, in its order."""
        return tuple(match[1] for match in _SETTING.finditer(str(self)))


def spell_settings(message: str, spell: Callable[[str, str | None], str]) -> str:
    """Replace the settings that a message names.

    Args:
        message: An error's or a note's.
        spell: Is given a setting's name, and the value that the message gives it or None; returns what to print.
    """
    return _SETTING.sub(lambda match: spell(match[1], match[2]), message)


class UserError(HeadstartError):
    """Something that the person at the keyboard can put right. On the command line: exit code 2."""


class SettingsError(UserError):
    """A setting is out of its range, or two settings contradict each other."""


class TableError(UserError):
    """A table of texts cannot be read as one: its form, a column, or a row."""


class EncoderError(UserError):
    """An encoder cannot be found, may not be read, or is not one that gives features."""


class OutputExistsError(UserError):
    """The output is there already and holds something else."""


class IdentityError(UserError):
    """Two things that must come from the same encoder and settings do not."""


class FormatError(UserError):
    """A file or folder is not one of ours (a cache, a run), or is of a version that this release cannot read."""


class BusyError(HeadstartError):
    """Another run is writing the same output."""


class DamagedError(HeadstartError):
    """A file of ours is cut short or does not hold what its own structure and checksums say."""


class StorageError(HeadstartError):
    """The machine could not read or write: no space, no permission, a failing disk."""
