"""The one hash of the format: BLAKE2b cut to 16 bytes, for rows, blocks and documents alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

HASH_BYTES = 16
Hashes = npt.NDArray[np.uint8]
"""Row hashes, (rows, 16) uint8."""


def digest(*parts: bytes | npt.NDArray[np.generic]) -> bytes:
    """Hash the parts as if they were one run of bytes."""
    state = hashlib.blake2b(digest_size=HASH_BYTES)
    for part in parts:
        state.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).view(np.uint8).data)
    return state.digest()


def hash_rows(rows: Iterable[bytes]) -> Hashes:
    """Hash each row's bytes: (rows, 16) uint8."""
    joined = b"".join(hashlib.blake2b(row, digest_size=HASH_BYTES).digest() for row in rows)
    return np.frombuffer(joined, np.uint8).reshape(-1, HASH_BYTES)


def hash_texts(texts: Iterable[str], pairs: Iterable[str] | None = None) -> Hashes:
    """Hash each text's UTF-8 bytes: (rows, 16) uint8. Of a pair: the first text's length, then both."""
    if pairs is None:
        return hash_rows(text.encode("utf-8") for text in texts)
    both = ((text.encode("utf-8"), pair.encode("utf-8")) for text, pair in zip(texts, pairs, strict=True))
    return hash_rows(len(text).to_bytes(8, "little") + text + pair for text, pair in both)


def hash_sequences(sequences: Iterable[npt.NDArray[np.int32]]) -> Hashes:
    """Hash each sequence of token ids (with their segments, in a pair), as little-endian int32: (rows, 16) uint8."""
    return hash_rows(sequence.astype("<i4").tobytes() for sequence in sequences)


def hash_keys(hashes: Hashes) -> npt.NDArray[np.void]:
    """View (rows, 16) hashes as (rows,) opaque values that compare as bytes, for ``np.unique``."""
    return np.ascontiguousarray(hashes).view(np.dtype((np.void, HASH_BYTES))).reshape(-1)
