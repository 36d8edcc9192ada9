"""JSON documents that may come from anyone: parsed, and held against what they must hold, before they are used."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import DamagedError

MAX_FILE_BYTES = 1 << 28
"""A document of ours has some thousand bytes, and a sweep's some hundred for each head. A larger file is not read."""

Kind = tuple[type, ...] | Mapping[str, Any]
"""What a value may be: one of some types, or an object with fields that are of such kinds themselves."""


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


def require_fields(document: Any, fields: Mapping[str, Kind], where: str) -> None:
    """Refuse an object that lacks one of these fields, or has a value of another kind there; it may hold more.

    Raises:
        DamagedError: it does.
    """
    if not isinstance(document, dict):
        raise DamagedError(f"{where} is not a JSON object")
    for name, kind in fields.items():
        if isinstance(kind, Mapping):
            require_fields(document.get(name), kind, f"{where}: its {name!r}")
        elif name not in document or not isinstance(document[name], kind):
            raise DamagedError(f"{where} lacks {name!r}, or it is of the wrong kind")
