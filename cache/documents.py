"""JSON documents that may come from anyone: parsed, and held against what they must hold, before they are used."""

from __future__ import annotations

import dataclasses
import functools
import json
import stat
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import DamagedError

MAX_FILE_BYTES = 1 << 28
"""A document of ours has some thousand bytes, and a sweep's some hundred for each head. A larger file is not read."""

_Document = TypeVar("_Document")


def parse_json(content: bytes, where: str) -> Any:
    """Parse a document.

    Raises:
        DamagedError: it is not JSON, or too deep to be read.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise DamagedError(f"{where} is nested too deep to be read") from None
    except ValueError as error:
        raise DamagedError(f"{where} is not JSON: {error}") from None


def is_text(value: Any) -> bool:
    """Whether a value is a string that can be written down: JSON may hold halves of surrogate pairs, UTF-8 may not."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def are_names(values: Any) -> bool:
    """Whether this is a list of distinct texts, at least one."""
    return isinstance(values, list) and all(map(is_text, values)) and 0 < len(values) == len(set(values))


def require_finite(document: Mapping[str, Any], where: str) -> None:
    """Refuse an object with a number that is negative, or none.

    Raises:
        DamagedError: it has one.
    """
    for name, value in document.items():
        if isinstance(value, int | float) and not 0 <= value < float("inf"):
            raise DamagedError(f"{where}: its {name!r} is {value}")


def read_json_file(path: Path) -> Any:
    """Read and parse a file.

    Raises:
        DamagedError: it is not a file (but a pipe, say), is too large, or not JSON.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
        raise DamagedError(f"{path} is not a file of at most {MAX_FILE_BYTES:,} bytes")
    return parse_json(path.read_bytes(), str(path))


def checked(document: Any, kind: type[_Document], where: str) -> _Document:
    """Return a parsed document as what it must be. It MAY hold more fields.

    Args:
        document: The document.
        kind: A `TypedDict`: the document itself is returned, with all its fields. Or a dataclass: it is made of the
            fields that it has.
        where: What an error calls the document.

    Raises:
        DamagedError: it is not an object, lacks a field, or a field has a value of another type.
    """
    if not isinstance(document, dict):
        raise DamagedError(f"{where} is not a JSON object")
    values = {}
    for name, allowed in _fields(typing.cast(Any, kind)):
        value = document.get(name)
        if isinstance(allowed, type):
            value = checked(value, allowed, f"{where}: its {name!r}")
        elif name not in document or not isinstance(value, allowed):
            raise DamagedError(f"{where} lacks {name!r}, or it is of the wrong kind")
        values[name] = value
    return kind(**values) if dataclasses.is_dataclass(kind) else typing.cast(_Document, document)


@functools.cache
def _fields(kind: Any) -> list[tuple[str, type | tuple[type, ...]]]:
    """Each field: its name, and another `TypedDict` or dataclass, or the types that its value may have.

    JSON writes some floats without a point, so a float may be an int.
    """
    fields = []
    for name, hint in typing.get_type_hints(kind).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        plain = {typing.get_origin(option) or option for option in options}
        nested = typing.is_typeddict(hint) or dataclasses.is_dataclass(hint)
        fields.append((name, hint if nested else tuple(plain | {int} if float in plain else plain)))
    return fields
