"""The exceptions of headstart. Every message is one line: what is wrong, where, and what to do about it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator

_SETTING = re.compile(r"`([a-z][a-z0-9_]*)(?:='?([\w.-]+)'?)?`")


class HeadstartError(Exception):
    """Base of all exceptions that headstart raises on purpose. The command line exits with code 1.

    A message names settings as in Python, in backticks: `out`, or `overwrite=True`. The command line spells them as
    options.
    """

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings that the message names, in order."""
        return tuple(match[1] for match in _SETTING.finditer(str(self)))


def spell_settings(message: str, spell: Callable[[str, str | None], str]) -> str:
    """Replace the settings that a text names.

    Args:
        message: The text of an error, a note or a help page.
        spell: Returns the replacement for a setting's name and its value in the text, or None without a value.
    """
    return _SETTING.sub(lambda match: spell(match[1], match[2]), message)


class UserError(HeadstartError):
    """Something that the user can correct. The command line exits with code 2."""


class SettingsError(UserError):
    """A setting is out of range, or two settings contradict each other."""


class TableError(UserError):
    """A table cannot be used: its format, a column, or a row is wrong."""


class EncoderError(UserError):
    """An encoder cannot be found or read, or gives no usable features."""


class OutputExistsError(UserError):
    """The output exists, and holds something else."""


class IdentityError(UserError):
    """Two things that must come from the same encoder and settings come from different ones."""


class FormatError(UserError):
    """A file or folder was not written by headstart, or has a version that this release cannot read."""


class BusyError(HeadstartError):
    """Another run is writing the same output."""


class DamagedError(HeadstartError):
    """A file that headstart wrote is cut short, or contradicts its own structure or checksums."""


class ExportError(HeadstartError):
    """An export does not say what the head says, or a library failed to write, load or upload it."""


class StorageError(HeadstartError):
    """The machine cannot read or write: no space, no permission, or a failing disk."""


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` in the block into a `StorageError`. Its message begins with ``what`` could not be done."""
    try:
        yield
    except OSError as error:
        # h5py puts a page of details into strerror, so the text for the number is used.
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        raise StorageError(f"{what}: {reason}") from error


def one_line(error: Exception) -> str:
    """Return the text of an error in one line."""
    return " ".join(str(error).split())
