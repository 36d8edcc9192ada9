"""The seal of a cache: its first bytes, which say how long it is, where its rows stand, and what all else must be.

HDF5 leaves room at the start of a file for whoever makes it. A cache's structure never changes once the file is made,
so the seal holds a hash of every byte that is not in a dataset: damage there is found before HDF5 looks at it, and a
file that was cut short or added to is told by its length. The datasets have checksums of their own. A seal tells
damage; whoever changes a file on purpose can seal it again, so the structure is checked all the same.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from .errors import DamagedError, FormatError
from .hashing import HASH_BYTES, digest

FORMAT = "headstart-cache"
VERSION = 1
SEAL_BYTES = 16384
_CONTENT_BYTES = SEAL_BYTES - HASH_BYTES
_BEGINNING = json.dumps({"format": FORMAT})[:-1].encode()
_MOST_STRUCTURE = 1 << 24
"""A structure has some ten thousand bytes. One that is said to have more is not read."""
Extent = tuple[int, int]
"""A run of bytes: where it starts, and where it stops."""


@dataclasses.dataclass(frozen=True)
class Seal:
    """What a seal says.

    Attributes:
        block_rows: Rows that share a checksum.
        size: Bytes of the file.
        extents: Where the datasets' bytes stand, in order, none overlapping.
    """

    block_rows: int
    size: int
    extents: tuple[Extent, ...]


def write_seal(path: Path, *, block_rows: int, extents: Iterable[Extent]) -> None:
    """Seal a file whose structure is complete, and whose first `SEAL_BYTES` are HDF5's user block."""
    size, ordered = path.stat().st_size, sorted(extents)
    with path.open("rb+") as file:
        structure = _hash_outside(file, ordered, size)
        fields = {"format": FORMAT, "version": VERSION, "block_rows": block_rows, "bytes": size}
        content = json.dumps({**fields, "datasets": ordered, "structure": structure.hex()}).encode()
        assert len(content) <= _CONTENT_BYTES, "a cache of hundreds of features needs a larger seal"
        content = content.ljust(_CONTENT_BYTES, b"\0")
        file.write(content + digest(content))


def read_seal(path: Path) -> Seal:
    """Check the seal, the file's length, and every byte outside of the datasets.

    Raises:
        NotOursError: the file does not begin as a cache does, or is of a newer version.
        DamagedError: the seal is broken, or what it says is not so.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        first = file.read(SEAL_BYTES)
        if not first.startswith(_BEGINNING):
            raise FormatError(f"{path} is not a headstart cache (it does not begin as one)")
        content, size = first[:_CONTENT_BYTES], os.fstat(file.fileno()).st_size
        if len(first) < SEAL_BYTES or digest(content) != first[_CONTENT_BYTES:]:
            raise DamagedError(f"{path}: its seal is damaged (bytes 1 to {SEAL_BYTES:,}), or it is cut short")
        seal, structure = _parse(content, path)
        if size != seal.size:
            kind = "is cut short" if size < seal.size else "has grown"
            raise DamagedError(f"{path} {kind}: it has {size:,} bytes of {seal.size:,}")
        if _hash_outside(file, seal.extents, size).hex() != structure:
            raise DamagedError(
                f"{path}: its HDF5 structure is damaged, or was changed by another program (a byte outside of the "
                "datasets is not what the seal says)"
            )
    return seal


def _parse(content: bytes, path: Path) -> tuple[Seal, str]:
    try:
        fields = json.loads(content.rstrip(b"\0"))
        version = fields["version"]
        if type(version) is int and version > VERSION:
            raise FormatError(
                f"{path} is a cache of version {version}; this headstart reads version {VERSION}: upgrade it"
            )
        extents = tuple((start, stop) for start, stop in fields["datasets"])
        numbers = [fields["block_rows"], fields["bytes"], *(number for extent in extents for number in extent)]
        valid = version == VERSION and all(type(number) is int for number in numbers) and fields["block_rows"] >= 1
        bounds = [SEAL_BYTES, *(number for extent in extents for number in extent), fields["bytes"]]
        valid = valid and bounds == sorted(bounds) and isinstance(fields["structure"], str)
        inside = sum(stop - start for start, stop in extents)
        if not valid or fields["bytes"] - inside > _MOST_STRUCTURE:
            raise ValueError("what it says of the file cannot be so")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"{path}: its seal says nothing that can be read: {error}") from None
    return Seal(fields["block_rows"], fields["bytes"], extents), fields["structure"]


def _hash_outside(file: IO[bytes], extents: Iterable[Extent], size: int) -> bytes:
    """Hash the bytes after the seal that are in none of these extents, which stand in order; the file is at its start
    again afterwards."""
    parts, at = [], SEAL_BYTES
    for start, stop in [*extents, (size, size)]:
        file.seek(at)
        parts.append(file.read(start - at))
        at = stop
    file.seek(0)
    return digest(*parts)
