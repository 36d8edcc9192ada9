"""JSON documents that may come from anyone: parsed, and held against what they must hold, before they are used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .errors import DamagedError

Kind = tuple[type, ...] | Mapping[str, Any]
"""What a value may be: one of some types, or an object with fields that are of such kinds themselves."""


def parse_json(content: bytes, where: str) -> Any:
    """Parse a document.

    Raises:
        DamagedError: it is not JSON, or too deep to be read.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is not JSON: {error}") from None


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
