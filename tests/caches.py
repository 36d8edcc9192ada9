"""Caches of random features, written as the tests need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from headstart.cache.hashing import hash_texts
from headstart.cache.identity import Identity
from headstart.cache.label_kind import LabelKind
from headstart.cache.record import Record
from headstart.cache.siblings import partial_path
from headstart.cache.writer import CacheWriter, create_cache

IDENTITY = Identity(
    weights_sha256="a" * 64,
    config_sha256="b" * 64,
    tokenizer_sha256="c" * 64,
    modules_sha256=None,
    model=None,
    prefix="",
    prefix_pooled=True,
    lower_case=False,
    pairs=False,
    max_length=128,
    truncation_side="right",
    long="cut",
    overlap=0,
    chunk_pooling=None,
    precision="float32",
    quantization="none",
    features=("cls",),
)
PLAN: dict[str, Any] = {"batch_tokens": 7, "window_rows": 8, "device": "cpu", "path": "padded"}
FACTS = ("text_hashes", "token_hashes", "lengths", "truncated")
RECORD = {
    **dict.fromkeys(Record.__annotations__, 0),
    "table": "table.csv",
    "precision_reason": "",
    "created": "2026-11-24T12:00:00+00:00",
    "rows": 10,
    "encoder": {"name": "bert", "folder": "bert", "revision": None},
    "machine": {"device": "cpu"},
}

KINDS: dict[LabelKind, tuple[Any, tuple[str, ...] | None]] = {
    LabelKind.MULTI_LABEL: (np.arange(10 * 3).reshape(10, 3) % 4 == 1, ("a", "b", "c")),
    LabelKind.ORDINAL: (np.arange(10) % 3, ("low", "mid", "high")),
    LabelKind.NUMBER: (np.arange(10) / 7 - 1, None),
}
"""Labels and their names of ten rows, of each kind but classes."""


def make_cache(
    path: Path,
    *,
    rows: int = 10,
    width: int = 3,
    block_rows: int = 4,
    storage: str = "float32",
    labelled: bool = True,
    numbered: bool = False,
    names: tuple[str, ...] = ("no", "yes"),
    finish: bool = True,
    blocks: list[int] | None = None,
    plan: dict[str, Any] = PLAN,
    **labels: Any,
) -> dict[str, Any]:
    """Write a cache with random features; return what was written. ``labels`` replace its own, with names and kind."""
    rng = np.random.default_rng(rows)
    wrote = {
        "features": rng.normal(size=(rows, width)).astype(np.float32),
        "text_hashes": hash_texts(f"text {i}" for i in range(rows)),
        "token_hashes": hash_texts(f"tokens {i}" for i in range(rows)),
        "lengths": rng.integers(1, 128, size=rows).astype(np.int32),
        "truncated": rng.integers(2, size=rows).astype(np.uint8),
        "labels": rng.integers(len(names), size=rows) if labelled else None,
        "label_names": names if labelled else None,
        "row_numbers": 1 + np.sort(rng.choice(3 * rows, rows, replace=False)) if numbered else None,
        "label_kind": LabelKind.CLASS,
        **labels,
    }
    partial = partial_path(path)
    create_cache(
        partial,
        block_rows=block_rows,
        widths={"cls": width},
        storage=storage,
        identity=IDENTITY,
        plan=plan,
        text_hashes=wrote["text_hashes"],
        labels=wrote["labels"],
        label_names=wrote["label_names"],
        label_kind=wrote["label_kind"],
        row_numbers=wrote["row_numbers"],
    )
    with CacheWriter(partial) as writer:
        for block in range(writer.layout.blocks) if blocks is None else blocks:
            place = writer.layout.block_slice(block)
            writer.write_block(
                block,
                features={"cls": wrote["features"][place]},
                **{name: wrote[name][place] for name in FACTS},
            )
        if finish:
            writer.finish({**RECORD, "rows": rows}, path)
    return wrote
