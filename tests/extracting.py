"""Runs of stage one as the tests make them: quick, interrupted, and compared byte by byte."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from headstart.cache.hashing import HASH_BYTES, digest
from headstart.cache.layout import read_layout
from headstart.cache.reader import Cache, open_any, open_cache
from headstart.cache.seal import SEAL_BYTES, write_seal
from headstart.cache.siblings import partial_path
from headstart.stages.encoders.backend import Backend
from headstart.stages.encoders.packed.forward import PackedForward
from headstart.stages.extract import extract
from headstart.stages.progress import Event, Note
from headstart.stages.settings import ExtractSettings

Notes = list[str]
SMALL_BLOCKS = {"block_rows": 8, "window_rows": 16}
"""Settings with which a small table has several blocks, in windows of two."""


def settings(encoder: Path, **options: Any) -> ExtractSettings:
    """Settings of float32, small batches and the feature ``cls``, unless the options say otherwise."""
    usual = {"encoder": str(encoder), "precision": "float32", "batch_tokens": 64, "features": ("cls",)}
    return ExtractSettings(**{**usual, **options})


def noting(notes: Notes) -> Callable[[Event], None]:
    """A report that keeps the notes."""
    return lambda event: notes.append(event.text) if isinstance(event, Note) else None


def run(table: Any, out: Path, encoder: Path, **options: Any) -> tuple[Cache, Notes]:
    """Extract, and open what was written; ``options`` are settings, or arguments of `extract`."""
    notes: Notes = []
    arguments = ("labels", "update", "reuse", "overwrite", "wait", "shards")
    chosen = {name: options.pop(name) for name in arguments if name in options}
    path = extract(table, out, settings(encoder, **options), report=noting(notes), **chosen)
    return open_cache(path), notes


def run_small_blocks(table: Any, out: Path, encoder: Path, **options: Any) -> tuple[Cache, Notes]:
    """`run`, in small blocks."""
    return run(table, out, encoder, **{**SMALL_BLOCKS, **options})


def datasets(path: Path) -> dict[str, bytes]:
    """The bytes of every dataset but the record, which tells times."""
    content = path.read_bytes()
    spans = read_layout(path)[1]
    return {n: content[s.offset : s.offset + s.nbytes] for n, s in spans.items() if "record" not in n}


def holding(out: Path) -> set[int]:
    """The blocks of an unfinished cache that hold; none where there is no such file."""
    if not partial_path(out).exists():
        return set()
    return set(np.flatnonzero(open_any(partial_path(out)).whole_blocks()).tolist())


def seal_again(path: Path, **changes: Any) -> None:
    """Seal a file whose structure was changed, as whoever does so on purpose would; ``changes`` go into the seal."""
    extents: list[tuple[int, int]] = []

    def note(_: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset) and item.id.get_offset() is not None:
            extents.append((item.id.get_offset(), item.id.get_offset() + item.id.get_storage_size()))

    fields = json.loads(path.read_bytes()[:SEAL_BYTES].split(b"\0")[0])
    with h5py.File(path) as file:
        file.visititems(note)
    write_seal(path, block_rows=fields["block_rows"], label_kind=fields.get("label_kind"), extents=extents)
    if changes:
        content = path.read_bytes()
        fields = {**json.loads(content[:SEAL_BYTES].split(b"\0")[0]), **changes}
        first = json.dumps(fields).encode().ljust(SEAL_BYTES - HASH_BYTES, b"\0")
        path.write_bytes(first + digest(first) + content[SEAL_BYTES:])


def flip_a_byte(path: Path, dataset: str, row: int) -> None:
    """Damage one row of a dataset, as a failing disk does."""
    span = read_layout(path)[1][dataset]
    content = bytearray(path.read_bytes())
    content[span.offset + row * (span.nbytes // span.shape[0])] ^= 1
    path.write_bytes(content)


@contextlib.contextmanager
def interrupted_after(batches: int) -> Iterator[None]:
    """Press Ctrl-C in the middle of the encoder's pass."""
    original, left = Backend.encode, batches

    def encode(self: Backend, batch: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backend, "encode", encode)
        yield


def room_for(patch: pytest.MonkeyPatch, tokens: int) -> None:
    """Let torch's own allocator refuse whatever more tokens than these ask of it."""
    original = PackedForward.__call__

    def call(self: PackedForward, sequences: Any) -> Any:
        if sum(map(len, sequences)) > tokens:
            torch.empty(1 << 60, dtype=torch.uint8)
        return original(self, sequences)

    patch.setattr(PackedForward, "__call__", call)
