"""JSON documents that may come from anyone. They are parsed and checked before they are used."""

from __future__ import annotations

import functools
import json
import stat
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import DamagedError

MAX_FILE_BYTES = 1 << 28
"""Larger files are not read. A document of headstart has some thousand bytes, plus some hundred for each head."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_Document = TypeVar("_Document")


def parse_json(content: bytes, where: str) -> Any:
    """Parse a document.

    Raises:
        DamagedError: the document is not JSON, or is nested too deep.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise DamagedError(f"{where} is nested too deep to be read") from None
    except ValueError as error:
        raise DamagedError(f"{where} is not JSON: {error}") from None


def is_text(value: Any) -> bool:
    """Return whether a value is a string that UTF-8 can encode. JSON may hold lone surrogates, UTF-8 may not."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def are_names(values: Any) -> bool:
    """Return whether this is a list of distinct texts, at least one."""
    return isinstance(values, list) and all(map(is_text, values)) and 0 < len(values) == len(set(values))


def require_finite(document: Mapping[str, Any], where: str) -> None:
    """Refuse an object with a number that is negative, infinite or NaN.

    Raises:
        DamagedError: the object has one.
    """
    for name, value in document.items():
        if isinstance(value, int | float) and not 0 <= value < float("inf"):
            raise DamagedError(f"{where}: its {name!r} is {value}")


def read_json_file(path: Path) -> Any:
    """Read and parse a file.

    Raises:
        DamagedError: the path is not a file (but a pipe, for example), or the file is too large or not JSON.
        OSError: the file cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
        raise DamagedError(f"{path} is not a file of at most {MAX_FILE_BYTES:,} bytes")
    return parse_json(path.read_bytes(), str(path))


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file holds only what Git keeps of a large file for git-lfs: a few lines that name it.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def checked(document: Any, kind: type[_Document], where: str) -> _Document:
    """Check the fields of a parsed document. It may hold more fields; they stay in it.

    Args:
        document: The document.
        kind: A `TypedDict` that declares the fields.
        where: The name of the document in an error.

    Returns:
        The document itself.

    Raises:
        DamagedError: the document is not an object, lacks a field, or a field has a value of another type, or a number
            that is not finite.
    """
    if not isinstance(document, dict):
        raise DamagedError(f"{where} is not a JSON object")
    for name, allowed in _fields(typing.cast(Any, kind)).items():
        if isinstance(allowed, type):
            checked(document.get(name), allowed, f"{where}: its {name!r}")
        elif name not in document or not isinstance(document[name], allowed):
            raise DamagedError(f"{where} lacks {name!r}, or it is of the wrong kind")
        elif float in allowed and document[name] is not None and not abs(document[name]) <= sys.float_info.max:
            raise DamagedError(f"{where}: its {name!r} is not a finite number")
    return typing.cast(_Document, document)


@functools.cache
def _fields(kind: Any) -> dict[str, type | tuple[type, ...]]:
    """Return the type of each field: another `TypedDict`, or a tuple of the types that are allowed.

    A float may be an int, because JSON may write it without a point.
    """
    fields = {}
    for name, hint in typing.get_type_hints(kind).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        plain = {typing.get_origin(option) or option for option in options}
        fields[name] = hint if typing.is_typeddict(hint) else tuple(plain | {int} if float in plain else plain)
    return fields
