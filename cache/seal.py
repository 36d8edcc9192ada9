"""The seal of a cache: its first bytes. They hold its length, the places of its datasets, and a hash of the rest.

HDF5 lets a program reserve bytes at the start of a file (the user block). The structure of a cache never changes after
the file is made, so the seal holds a hash of every byte outside the datasets: damage there is found before HDF5 reads
it, and the length reveals a file that was cut short or extended. The datasets have their own checksums. A seal reveals
damage, not malice: anyone can change a file and seal it again. So the structure is checked as well.
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
from .label_kind import LabelKind

FORMAT = "headstart-cache"
VERSION = 1
SEAL_BYTES = 16384
_CONTENT_BYTES = SEAL_BYTES - HASH_BYTES
_BEGINNING = json.dumps({"format": FORMAT})[:-1].encode()
MOST_STRUCTURE = 1 << 24
"""A structure has some ten thousand bytes. If a seal says that it has more than this, it is not read."""
Extent = tuple[int, int]
"""A range of bytes: its start, and its end (exclusive)."""


@dataclasses.dataclass(frozen=True)
class Seal:
    """The content of a seal.

    Attributes:
        block_rows: Number of rows that share a checksum.
        label_kind: Kind of the labels; `LabelKind.CLASS` where there are none.
        size: Number of bytes of the file.
        extents: Bytes of each dataset that is in the file, in order, without overlap.
        shards: Number of files that hold the rows of a joined cache; 0 of a cache that holds its own.
    """

    block_rows: int
    label_kind: LabelKind
    size: int
    extents: tuple[Extent, ...]
    shards: int = 0


def begins_as_cache(path: Path) -> bool:
    """Whether this is a file, and no link to one, that headstart made, whole or damaged."""
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING


def write_seal(
    path: Path, *, block_rows: int, label_kind: LabelKind | None, extents: Iterable[Extent], shards: int = 0
) -> None:
    """Write the seal into the user block, the first `SEAL_BYTES`, of a file whose structure is complete.

    ``label_kind`` is None where there are no labels; ``shards`` as in `Seal`.
    """
    size, ordered = path.stat().st_size, sorted(extents)
    with path.open("rb+") as file:
        structure = _hash_outside(file, ordered, size)
        fields = {"format": FORMAT, "version": VERSION, "block_rows": block_rows, "bytes": size}
        fields |= {} if label_kind is None else {"label_kind": label_kind}
        fields |= {"shards": shards} if shards else {}
        content = json.dumps({**fields, "datasets": ordered, "structure": structure.hex()}).encode()
        assert len(content) <= _CONTENT_BYTES, "a cache of hundreds of features needs a larger seal"
        content = content.ljust(_CONTENT_BYTES, b"\0")
        file.write(content + digest(content))


def read_seal(path: Path) -> Seal:
    """Read the seal; check the file's length and every byte outside the datasets against it.

    Raises:
        FormatError: the file does not begin as a cache does, or holds what only a newer headstart reads.
        DamagedError: the seal is damaged, or the file contradicts it.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        seal, structure = parse_seal(file.read(SEAL_BYTES), size, path)
        if _hash_outside(file, seal.extents, size).hex() != structure:
            raise DamagedError(
                f"{path}: its HDF5 structure is damaged, or another program changed it (a byte outside the datasets "
                "contradicts the seal)"
            )
    return seal


def parse_seal(first: bytes, size: int, path: Path) -> tuple[Seal, str]:
    """Read a seal from the first `SEAL_BYTES` of a file, and check the file's length against it.

    Returns:
        The seal, and the hash of every byte outside the datasets, which is still to be checked.

    Raises:
        As `read_seal`, but for what is said of those bytes.
    """
    if not first.startswith(_BEGINNING):
        raise FormatError(f"{path} is not a headstart cache (it does not begin as one)")
    content = first[:_CONTENT_BYTES]
    if len(first) < SEAL_BYTES or digest(content) != first[_CONTENT_BYTES:]:
        raise DamagedError(f"{path}: its seal is damaged (bytes 1 to {SEAL_BYTES:,}), or it is cut short")
    seal, structure = _parse(content, path)
    if size != seal.size:
        kind = "is cut short" if size < seal.size else "has grown"
        raise DamagedError(f"{path} {kind}: it has {size:,} bytes of {seal.size:,}")
    return seal, structure


def _parse(content: bytes, path: Path) -> tuple[Seal, str]:
    try:
        fields = json.loads(content.rstrip(b"\0"))
        version = fields["version"]
        if type(version) is int and version > VERSION:
            raise FormatError(
                f"{path} is a cache of version {version}, and this headstart reads version {VERSION}: upgrade headstart"
            )
        if (kind := fields.get("label_kind", LabelKind.CLASS)) not in list(LabelKind):
            raise FormatError(
                f"{path} has labels of the kind {str(kind)[:80]!r}, and this headstart knows {', '.join(LabelKind)}, "
                "so nothing can be trained on it: upgrade headstart"
            )
        extents = tuple((start, stop) for start, stop in fields["datasets"])
        shards = fields.get("shards", 0)
        numbers = [fields["block_rows"], fields["bytes"], shards, *(number for extent in extents for number in extent)]
        valid = version == VERSION and all(type(number) is int for number in numbers) and fields["block_rows"] >= 1
        valid = valid and (shards >= 1 or "shards" not in fields)
        bounds = [SEAL_BYTES, *(number for extent in extents for number in extent), fields["bytes"]]
        valid = valid and bounds == sorted(bounds) and isinstance(fields["structure"], str)
        inside = sum(stop - start for start, stop in extents)
        if not valid or fields["bytes"] - inside > MOST_STRUCTURE:
            raise ValueError("its content is impossible")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"{path}: its seal cannot be understood: {error}") from None
    return Seal(fields["block_rows"], LabelKind(kind), fields["bytes"], extents, shards), fields["structure"]


def _hash_outside(file: IO[bytes], extents: Iterable[Extent], size: int) -> bytes:
    """Hash the bytes after the seal that are in none of the extents, which are in order. Return to the file's start."""
    parts, at = [], SEAL_BYTES
    for start, stop in [*extents, (size, size)]:
        file.seek(at)
        parts.append(file.read(start - at))
        at = stop
    file.seek(0)
    return digest(*parts)
