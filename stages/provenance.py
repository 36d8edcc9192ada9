"""Where a record comes from: the version of headstart, the time, the machine and the libraries, written one way."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from .devices import machine

TORCH = {"torch": str(torch.__version__)}


def provenance(
    device: torch.device, fields: Mapping[str, Any], *, timespec: str = "seconds", versions: Mapping[str, str] = TORCH
) -> dict[str, Any]:
    """Put a record's fields between the header that every record begins with and the one that it ends with.

    Args:
        device: Where the work was done.
        fields: What the record holds besides.
        timespec: Precision of the time, as in `datetime.datetime.isoformat`.
        versions: The libraries that took part, with their versions.

    Returns:
        ``headstart`` (its version) and ``created`` (the time in UTC), then the fields, then ``machine`` and
        ``versions``.
    """
    return {
        "headstart": version("headstart"),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec=timespec),
        **fields,
        "machine": machine(device),
        "versions": versions,
    }
