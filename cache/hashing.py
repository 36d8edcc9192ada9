"""The hash of the cache format: BLAKE2b with 16 bytes, for rows, blocks and documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

HASH_BYTES = 16
Hashes = npt.NDArray[np.uint8]
"""Row hashes, (rows, 16) uint8."""


def digest(*parts: bytes | npt.NDArray[np.generic]) -> bytes:
    """Hash the concatenation of some bytes and arrays."""
    state = hashlib.blake2b(digest_size=HASH_BYTES)
    for part in parts:
        state.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).view(np.uint8).data)
    return state.digest()


def hash_rows(rows: Iterable[bytes]) -> Hashes:
    """Return the hash of each row's bytes: (rows, 16) uint8."""
    joined = b"".join(hashlib.blake2b(row, digest_size=HASH_BYTES).digest() for row in rows)
    return np.frombuffer(joined, np.uint8).reshape(-1, HASH_BYTES)


def hash_texts(texts: Iterable[str], pairs: Iterable[str] | None = None) -> Hashes:
    """Return the hash of each text in UTF-8: (rows, 16) uint8. A pair is the first text's length, then both texts."""
    if pairs is None:
        return hash_rows(text.encode("utf-8") for text in texts)
    both = ((text.encode("utf-8"), pair.encode("utf-8")) for text, pair in zip(texts, pairs, strict=True))
    return hash_rows(len(text).to_bytes(8, "little") + text + pair for text, pair in both)


def hash_sequences(sequences: Iterable[npt.NDArray[np.int32]]) -> Hashes:
    """Return the hash of each token sequence: (rows, 16) uint8.

    A sequence is token ids as little-endian int32; in a pair, each id is followed by its segment.
    """
    return hash_rows(sequence.astype("<i4").tobytes() for sequence in sequences)


def hash_keys(hashes: Hashes) -> npt.NDArray[np.void]:
    """View (rows, 16) hashes as (rows,) values that compare as bytes, as ``np.unique`` needs them."""
    return np.ascontiguousarray(hashes).view(np.dtype((np.void, HASH_BYTES))).reshape(-1)
