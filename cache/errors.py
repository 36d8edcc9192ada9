"""The exceptions that headstart raises on purpose: one tree, so that the command line needs one rule.

Every message is one line that says what is wrong, where, and what to do about it.
"""

from __future__ import annotations


class HeadstartError(Exception):
    """Anything that can be foreseen to go wrong. On the command line: one line, exit code 1."""


class UserError(HeadstartError):
    """Something that the person at the keyboard can put right. On the command line: exit code 2."""


class SettingsError(UserError):
    """A setting is out of its range, or two settings contradict each other.

    Attributes:
        field: The setting's name in Python, with which the message begins; None where it begins otherwise.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


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
