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
    """Add to the fields of a record what every record says of its origin.

    Returns:
        ``headstart`` (its version) and ``created`` (the time in UTC, with isoformat's ``timespec``), then the fields,
        then ``machine`` (with the device) and ``versions`` of the libraries.
    """
    return {
        "headstart": version("headstart"),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec=timespec),
        **fields,
        "machine": machine(device),
        "versions": versions,
    }
