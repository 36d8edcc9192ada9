"""Encoders that loaded well on this machine before: the next run loads them without transformers.

When transformers loads an encoder, the packed pass is tried beside the model's own. Where that went well, a file says
what it takes to load the encoder again, and which vectors it gave for some texts:

    FOLDER/<hash of identity, versions, processor and GPU>.npz

A run with the same identity, versions, processor and GPU loads the encoder by that, and checks it by these vectors.
Where anything stands in the way, transformers loads it as ever. The folder is ``HEADSTART_CACHE``, or ``headstart`` in
the user's cache folder; where that variable is empty, nothing is kept.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...cache.hashing import digest
from ...cache.identity import Identity
from ..devices import cpu_capabilities
from ..settings import Precision
from .encoder import VERSIONS, Encoder, encode_sequences

_VARIABLE = "HEADSTART_CACHE"
_TEXTS = ("a good film", "the plot drags, but the acting is superb", "Never again! 42 times")
_ALIKE = {Precision.FLOAT32: 1e-4, Precision.BFLOAT16: 1e-2, Precision.FLOAT16: 1e-2, Precision.INT8: 0.1}
"""Largest difference of a number, as a share of the largest number of its feature."""


def recall(identity: Identity, device: torch.device, load: Callable[[Any], Encoder | None]) -> Encoder | None:
    """Load an encoder by the file of an earlier trial; None where there is none, or it does not hold.

    ``load`` is `EncoderSession.load_packed` of the encoder on that device.
    """
    path = _path(identity, device)
    if path is None:
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            packed, vectors = json.loads(str(kept["packed"])), {n: kept[n] for n in kept.files if n != "packed"}
        encoder = load(packed)
        return encoder if encoder is not None and _agree(encoder, vectors, identity.computed_in) else None
    except Exception:  # of any kind, from a file that is odd
        return None


def remember(identity: Identity, device: torch.device, encoder: Encoder) -> None:
    """Keep what it takes to load an encoder that transformers loaded; nothing where it cannot be written."""
    path = _path(identity, device)
    if path is None or encoder.config is None or encoder.notes:  # notes are of transformers: they are to be seen again
        return
    vectors = _vectors(encoder)
    if vectors is None:
        return
    content = io.BytesIO()
    np.savez(content, packed=np.array(json.dumps(encoder.config.to_record())), **vectors)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content.getvalue())
        Path(file.name).replace(path)


def _path(identity: Identity, device: torch.device) -> Path | None:
    """Where the file of an encoder is; None where none is kept."""
    named = os.environ.get(_VARIABLE)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - `~` may lead nowhere
    if named == "" or not os.path.isabs(home):  # noqa: PTH117
        return None
    folder = Path(named) if named else Path(home) / "headstart"
    made_by = [version("headstart"), VERSIONS, cpu_capabilities().get("cpu_name")]
    if device.type == "cuda":
        made_by.append(torch.cuda.get_device_name(device))
    return folder / f"{digest(identity.to_json().encode(), json.dumps(made_by).encode()).hex()}.npz"


def _vectors(encoder: Encoder) -> dict[str, Any] | None:
    """The features of the texts, (texts, width) float32, by ``feature_`` and the name; None without tokens."""
    pairs = list(_TEXTS[::-1]) if encoder.takes_pairs else None
    sequences, _ = encoder.tokenize(list(_TEXTS), pairs)
    if not all(map(len, sequences)):
        return None
    return {f"feature_{name}": values for name, values in encode_sequences(encoder, sequences).items()}


def _agree(encoder: Encoder, kept: dict[str, Any], precision: str) -> bool:
    found, most = _vectors(encoder), _ALIKE[Precision(precision)]
    return (
        found is not None
        and found.keys() == kept.keys()
        and all(
            values.shape == kept[name].shape
            and bool((np.abs(values - kept[name]) <= most * np.abs(values).max()).all())
            for name, values in found.items()
        )
    )
