"""Loading an encoder without transformers, and proving it on rows of a cache that the encoder made.

The features of a packed cache are the model's own: the packed pass was tried beside the model's pass when transformers
loaded the encoder. So an encoder that gives a sample of the cache's rows again is the same encoder. Where anything
stands in the way of this proof, transformers loads the encoder after all.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch

from ...cache.hashing import hash_sequences
from ...cache.reader import Cache
from ..encoders.encoder import VERSIONS, Encoder
from ..encoders.session import EncoderSession
from ..settings import ForwardMode, Precision
from ..tables.scan import TableScan
from ..types import Features, Indices
from .row_index import RowIndex
from .tolerance import relative_differences, tolerance_of

FIRST_ROWS = 4096  # at the top of the table, and of the cache, among which shared rows are looked for
SAMPLE_ROWS = 16  # that are encoded again before the encoder is trusted
_ALIKE = {Precision.FLOAT32: 1e-3, Precision.BFLOAT16: 0.1, Precision.FLOAT16: 0.1, Precision.INT8: 0.2}
"""Largest error of a row, as a share of the row's distance from the sample's mean. The numbers that tell texts apart
must be right, and not only the few large numbers that are nearly equal in all texts."""
_STORED_ALIKE = {"float32": 0.0, "float16": 0.02}
"""The same by how features are stored: the rounding of float16 is relative to the large numbers."""


def reopen(session: EncoderSession, caches: Sequence[Cache], scan: TableScan) -> None:
    """Load a session's encoder without transformers, where a cache proves it; otherwise do nothing.

    The encoder, not loaded yet, is of the finished caches' identity. The sample is taken from the table's first rows.
    """
    cache = next((cache for cache in caches if _is_ours(cache)), None)
    if cache is None or session.device.type != "cpu":
        return
    index = RowIndex(cache.text_hashes, np.arange(min(cache.rows, FIRST_ROWS)))
    rows = scan.top[:FIRST_ROWS]
    places = index.find(scan.text_hashes[: len(rows)])  # the table's rows in the cache, or -1
    width = max(cache.layout.widths.values())
    sample = _sample(cache, places, session.encoder_settings.chosen_batch_tokens(ForwardMode.PACKED, width))
    if not len(sample):
        return
    texts = [rows.texts[row] for row in sample]
    pairs = None if rows.pairs is None else [rows.pairs[row] for row in sample]
    try:
        encoder = session.load_packed(cache.record["encoder"].get("packed"))
        if encoder is not None and _is_proven(encoder, texts, pairs, cache, places[sample]):
            session.use(encoder)
    except Exception:  # any kind, from files that are odd; where they are wrong, transformers says so
        return


def _is_ours(cache: Cache) -> bool:
    """Whether the packed pass of this version made a cache."""
    made = cache.plan["device"], cache.plan["path"], cache.record.get("headstart"), cache.record.get("versions")
    return made == ("cpu", ForwardMode.PACKED, version("headstart"), VERSIONS) and "packed" in cache.record["encoder"]


def _sample(cache: Cache, places: Indices, most_tokens: int) -> Indices:
    """Choose rows of all lengths that lie in undamaged blocks of the cache and fit into one batch.

    ``places`` are the table's rows in the cache, -1 where the cache lacks the row. Returns rows of the table."""
    shared = np.flatnonzero(places >= 0)
    shared = shared[np.argsort(cache.lengths[places[shared]], kind="stable")]
    sample = shared[np.unique(np.linspace(0, len(shared) - 1, SAMPLE_ROWS).astype(int))] if len(shared) else shared
    blocks = places[sample] // cache.layout.block_rows
    whole = [block for block in np.unique(blocks) if cache.block_holds(int(block))]
    sample = sample[np.isin(blocks, whole)]
    return sample[np.cumsum(cache.lengths[places[sample]], dtype=np.int64) <= most_tokens]


def _is_proven(
    encoder: Encoder, texts: Sequence[str], pairs: Sequence[str] | None, cache: Cache, rows: Indices
) -> bool:
    """Whether the encoder gives a cache's rows again: the same token ids, and features within the tolerance."""
    tokens, _ = encoder.tokenize(texts, pairs)
    if not np.array_equal(hash_sequences(tokens), cache.token_hashes[rows]):
        return False
    sequences, counts = encoder.long_texts.split(tokens)
    with torch.inference_mode():  # as one batch
        features = {name: values.float().numpy() for name, values in encoder.backend.forward(sequences).items()}
    if any(features[name].shape != (len(sequences), width) for name, width in encoder.widths.items()):
        return False
    features = encoder.long_texts.join(features, sequences, counts)
    alike = max(_ALIKE[Precision(cache.identity.computed_in)], _STORED_ALIKE[cache.layout.storage])
    if not all(_tell_apart(values, cache, name, rows, alike) for name, values in features.items()):
        return False
    return bool((relative_differences(features, cache, rows) <= tolerance_of(cache)).all())


def _tell_apart(values: Features, cache: Cache, name: str, rows: Indices, alike: float) -> bool:
    """Whether features differ from their mean as the stored features do; False for a NaN, and for a single row."""
    stored = np.asarray(cache.features(name)[rows], np.float64)
    stored -= stored.mean(axis=0)
    apart = np.linalg.norm(stored, axis=1)
    off = np.linalg.norm((values - values.mean(axis=0)) - stored, axis=1)
    return bool((off <= alike * apart).all() and apart.all())
